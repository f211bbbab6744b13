-- From version 1 to 2: deadlines in hub time, other tries, joining, undo. What is open begins its 30 days (an
-- installation its 2) anew.

ALTER TABLE syncs ADD COLUMN undoes TEXT NOT NULL DEFAULT '';
ALTER TABLE deliveries ADD COLUMN expires_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN deadline_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN retry_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN follows TEXT REFERENCES deliveries;
ALTER TABLE deliveries ADD COLUMN before_digest BLOB;
UPDATE deliveries SET expires_at = 2592000, deadline_at = CASE state WHEN 'installing' THEN 172800 ELSE 2592000 END
WHERE is_final = 0;
CREATE INDEX deliveries_overdue ON deliveries (deadline_at) WHERE is_final = 0;
CREATE INDEX deliveries_to_retry ON deliveries (retry_at) WHERE is_final = 0 AND retry_at > 0;
CREATE INDEX deliveries_following ON deliveries (follows) WHERE is_final = 0 AND follows IS NOT NULL;
CREATE TABLE hub_clock (seconds DOUBLE PRECISION NOT NULL);
INSERT INTO hub_clock VALUES (0);

-- After a restore: the deliveries the backup shows as open, and what the target had of the program then (NULL: nothing).
-- A row goes with the first inventory of its terminal, which tells whether the delivery is owed still.
CREATE TABLE restored (
    delivery_id TEXT PRIMARY KEY REFERENCES deliveries,
    had_digest  BLOB
);
