-- From version 2 to 3: channels, yanked releases, retired programs, aliases, who may publish from a terminal.

ALTER TABLE accounts ADD COLUMN may_publish INTEGER NOT NULL DEFAULT 0;
ALTER TABLE programs ADD COLUMN retired INTEGER NOT NULL DEFAULT 0;
ALTER TABLE releases ADD COLUMN channel TEXT NOT NULL DEFAULT 'stable';
ALTER TABLE releases ADD COLUMN yanked INTEGER NOT NULL DEFAULT 0;

-- The name an operating system knows a program by -> the program.
CREATE TABLE aliases (
    os_type      TEXT NOT NULL,
    package_name TEXT NOT NULL,
    program_id   TEXT NOT NULL REFERENCES programs,
    PRIMARY KEY (os_type, package_name)
);
CREATE INDEX aliases_of_program ON aliases (program_id);

-- What orders the builds of an APK has a field of its own now.
UPDATE installers SET facts = CAST(json_set(
    CAST(facts AS TEXT), '$.sortable_version', json_extract(CAST(facts AS TEXT), '$.package_version_code') || '') AS BLOB)
WHERE kind = 'apk' AND json_extract(CAST(facts AS TEXT), '$.package_version_code') > 0;
