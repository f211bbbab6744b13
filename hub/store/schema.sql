-- The hub's database, version 4. Portable SQL where that costs nothing; times are Unix seconds, sizes bytes.
-- An older version is brought here by `upgrade_2.sql` and so on.

-- `rights` are words parted by blanks; what a terminal may is in its account's and in its own. `subject` is who it is at
-- the identity provider: the issuer, a blank, the token's `sub`.
CREATE TABLE accounts (
    account_id    TEXT PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created_at    DOUBLE PRECISION NOT NULL,
    rights        TEXT NOT NULL DEFAULT 'approve initiate receive',
    disabled_at   DOUBLE PRECISION,
    subject       TEXT
);
CREATE UNIQUE INDEX accounts_by_subject ON accounts (subject) WHERE subject IS NOT NULL;

-- A device of an account. `connection` counts its logins: what an older socket still says changes nothing. `receiver`
-- says that it has ever connected to receive: only such devices are meant by "all". One that is revoked stays for the
-- history, under another name; its key is dead. `cloned_at`: its key was seen in two places. `tags` are a JSON list.
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
    rights       TEXT NOT NULL DEFAULT 'approve initiate publish receive',
    tags         TEXT NOT NULL DEFAULT '[]',
    enrolled_by  TEXT NOT NULL DEFAULT 'password',
    revoked_at   DOUBLE PRECISION,
    cloned_at    DOUBLE PRECISION,
    UNIQUE (account_id, device_key),
    UNIQUE (account_id, name)
);
CREATE INDEX terminals_by_key ON terminals (device_key);

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

-- `verdict` is what all engines together say: only what is clean is chosen. `finding` says in words what is not.
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
    verdict      TEXT NOT NULL DEFAULT 'not-scanned',
    finding      TEXT NOT NULL DEFAULT '',
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
