-- The hub's database, version 3. Portable SQL where that costs nothing; times are Unix seconds, sizes bytes.
-- An older version is brought here by `upgrade_2.sql` and so on.

CREATE TABLE accounts (
    account_id    TEXT PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created_at    DOUBLE PRECISION NOT NULL,
    may_publish   INTEGER NOT NULL DEFAULT 0
);

-- A device of an account. `connection` counts its logins: what an older socket still says changes nothing. `receiver`
-- says that it has ever connected to receive: only such devices are meant by "all".
CREATE TABLE terminals (
    terminal_id  TEXT PRIMARY KEY,
    account_id   TEXT NOT NULL REFERENCES accounts,
    name         TEXT NOT NULL,
    device_key   BLOB NOT NULL,
    sealing_key  BLOB NOT NULL,
    device       BLOB NOT NULL,
    address      TEXT NOT NULL,
    connection   INTEGER NOT NULL DEFAULT 0,
    receiver     INTEGER NOT NULL DEFAULT 0,
    created_at   DOUBLE PRECISION NOT NULL,
    last_seen_at DOUBLE PRECISION NOT NULL,
    UNIQUE (account_id, device_key),
    UNIQUE (account_id, name)
);

CREATE TABLE objects (
    digest      BLOB PRIMARY KEY,
    size        INTEGER NOT NULL,
    stored_size INTEGER NOT NULL,
    chunks      INTEGER NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL
);

-- A retired program is listed and sent no more; what runs goes on.
CREATE TABLE programs (
    program_id TEXT PRIMARY KEY,
    title      TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    retired    INTEGER NOT NULL DEFAULT 0
);

-- The name an operating system knows a program by -> the program.
CREATE TABLE aliases (
    os_type      TEXT NOT NULL,
    package_name TEXT NOT NULL,
    program_id   TEXT NOT NULL REFERENCES programs,
    PRIMARY KEY (os_type, package_name)
);
CREATE INDEX aliases_of_program ON aliases (program_id);

-- A yanked release is chosen no more until it is restored; what runs goes on.
CREATE TABLE releases (
    program_id  TEXT NOT NULL REFERENCES programs,
    version     TEXT NOT NULL,
    version_key TEXT NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    channel     TEXT NOT NULL DEFAULT 'stable',
    yanked      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (program_id, version)
);
CREATE INDEX releases_newest_first ON releases (program_id, version_key DESC);

CREATE TABLE installers (
    digest       BLOB PRIMARY KEY REFERENCES objects,
    program_id   TEXT NOT NULL,
    version      TEXT NOT NULL,
    kind         TEXT NOT NULL,
    package_name TEXT NOT NULL,
    file_version TEXT NOT NULL,
    file_name    TEXT NOT NULL,
    facts        BLOB NOT NULL,
    size         INTEGER NOT NULL,
    created_at   DOUBLE PRECISION NOT NULL,
    FOREIGN KEY (program_id, version) REFERENCES releases
);
CREATE INDEX installers_of_release ON installers (program_id, version);

-- What each terminal says it has, by program.
CREATE TABLE installed (
    terminal_id TEXT NOT NULL REFERENCES terminals,
    program_id  TEXT NOT NULL,
    version     TEXT NOT NULL,
    kind        TEXT NOT NULL,
    digest      BLOB NOT NULL,
    PRIMARY KEY (terminal_id, program_id)
);
CREATE INDEX installed_by_program ON installed (program_id);

CREATE TABLE syncs (
    sync_id     TEXT PRIMARY KEY,
    account_id  TEXT NOT NULL REFERENCES accounts,
    initiator   TEXT NOT NULL REFERENCES terminals,
    request_key TEXT NOT NULL,
    program_id  TEXT NOT NULL,
    version     TEXT NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    ended_at    DOUBLE PRECISION,
    outcome     TEXT NOT NULL DEFAULT '',
    noted       INTEGER NOT NULL DEFAULT 0,
    undoes      TEXT NOT NULL DEFAULT '',
    UNIQUE (initiator, request_key)
);
CREATE INDEX syncs_newest_first ON syncs (account_id, created_at DESC);
CREATE INDEX syncs_not_noted ON syncs (initiator) WHERE noted = 0;

-- One sync on one target. `revision` grows with every change, over all deliveries; `position` is the first one's.
-- Hub time (`hub_clock`): `expires_at` ends the delivery, `deadline_at` its present state; before `retry_at` it is not
-- claimed, 0 when it need not wait. `tries` have failed so far. `follows` names the delivery that brings this target the
-- same object already: this one goes as that one goes. `before_digest` is what the target had when it was offered.
CREATE TABLE deliveries (
    delivery_id TEXT PRIMARY KEY,
    sync_id     TEXT NOT NULL REFERENCES syncs,
    terminal_id TEXT NOT NULL REFERENCES terminals,
    position    INTEGER NOT NULL,
    digest      BLOB,
    state       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    version     TEXT NOT NULL,
    mismatches  BLOB NOT NULL,
    sent        INTEGER NOT NULL DEFAULT 0,
    connection  INTEGER NOT NULL DEFAULT 0,
    revision    INTEGER NOT NULL,
    is_final    INTEGER NOT NULL,
    created_at  DOUBLE PRECISION NOT NULL,
    changed_at  DOUBLE PRECISION NOT NULL,
    expires_at  DOUBLE PRECISION NOT NULL DEFAULT 0,
    deadline_at DOUBLE PRECISION NOT NULL DEFAULT 0,
    retry_at    DOUBLE PRECISION NOT NULL DEFAULT 0,
    tries       INTEGER NOT NULL DEFAULT 0,
    follows     TEXT REFERENCES deliveries,
    before_digest BLOB,
    UNIQUE (sync_id, terminal_id)
);
CREATE INDEX deliveries_owed ON deliveries (terminal_id, position) WHERE is_final = 0;
CREATE INDEX deliveries_changed ON deliveries (sync_id, revision);
CREATE INDEX deliveries_overdue ON deliveries (deadline_at) WHERE is_final = 0;
CREATE INDEX deliveries_to_retry ON deliveries (retry_at) WHERE is_final = 0 AND retry_at > 0;
CREATE INDEX deliveries_following ON deliveries (follows) WHERE is_final = 0 AND follows IS NOT NULL;

-- Seconds this hub has run, over all its runs: what deadlines count by. The time it was down does not count.
CREATE TABLE hub_clock (seconds DOUBLE PRECISION NOT NULL);
INSERT INTO hub_clock VALUES (0);

-- After a restore: the deliveries the backup shows as open, and what the target had of the program then (NULL: nothing).
-- A row goes with the first inventory of its terminal, which tells whether the delivery is owed still.
CREATE TABLE restored (
    delivery_id TEXT PRIMARY KEY REFERENCES deliveries,
    had_digest  BLOB
);
