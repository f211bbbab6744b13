-- From version 3 to 4: rights, revoked devices, other ways to enrol, verdicts, postures, the audit log.

ALTER TABLE accounts ADD COLUMN rights TEXT NOT NULL DEFAULT 'approve initiate receive';
UPDATE accounts SET rights = 'approve initiate publish receive' WHERE may_publish = 1;
ALTER TABLE accounts DROP COLUMN may_publish;
ALTER TABLE accounts ADD COLUMN disabled_at DOUBLE PRECISION;
ALTER TABLE accounts ADD COLUMN subject TEXT;
CREATE UNIQUE INDEX accounts_by_subject ON accounts (subject) WHERE subject IS NOT NULL;

ALTER TABLE terminals ADD COLUMN rights TEXT NOT NULL DEFAULT 'approve initiate publish receive';
ALTER TABLE terminals ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE terminals ADD COLUMN enrolled_by TEXT NOT NULL DEFAULT 'password';
ALTER TABLE terminals ADD COLUMN revoked_at DOUBLE PRECISION;
ALTER TABLE terminals ADD COLUMN cloned_at DOUBLE PRECISION;
CREATE INDEX terminals_by_key ON terminals (device_key);

ALTER TABLE installers ADD COLUMN verdict TEXT NOT NULL DEFAULT 'not-scanned';
ALTER TABLE installers ADD COLUMN finding TEXT NOT NULL DEFAULT '';

-- A key with which devices enrol unattended, kept as its SHA-256. `tags` (a JSON list) go to each of them.
CREATE TABLE join_keys (
    join_key_id TEXT PRIMARY KEY,
    account_id  TEXT NOT NULL REFERENCES accounts,
    digest      BLOB NOT NULL UNIQUE,
    tags        TEXT NOT NULL,
    uses_left   INTEGER NOT NULL,
    uses        INTEGER NOT NULL,
    expires_at  DOUBLE PRECISION NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    revoked_at  DOUBLE PRECISION
);

-- What each engine last said of an installer's bytes: clean, infected, suspicious or not-scanned. `rules` names the
-- version of its rules; `findings` is a JSON list.
CREATE TABLE verdicts (
    digest     BLOB NOT NULL REFERENCES objects,
    engine     TEXT NOT NULL,
    verdict    TEXT NOT NULL,
    rules      TEXT NOT NULL,
    findings   TEXT NOT NULL,
    detail     TEXT NOT NULL,
    scanned_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (digest, engine)
);

-- The newest report of each terminal on its own programs, as it was signed. `reported_at` is the hub's time.
CREATE TABLE postures (
    terminal_id TEXT PRIMARY KEY REFERENCES terminals,
    rules       BLOB NOT NULL,
    reported_at DOUBLE PRECISION NOT NULL,
    findings    INTEGER NOT NULL,
    complete    INTEGER NOT NULL,
    report      BLOB NOT NULL,
    signature   BLOB NOT NULL
);

-- Who did what to what, in the same transaction as the act. `hash` is over the row and the hash before it.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    at       DOUBLE PRECISION NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    hash     BLOB NOT NULL
);

-- The head of the audit log, signed by the hub's key once a day.
CREATE TABLE audit_heads (
    sequence  INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    at        DOUBLE PRECISION NOT NULL,
    signature BLOB NOT NULL
);
