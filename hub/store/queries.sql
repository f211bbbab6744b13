-- Every query of the hub, by name. `:name` is a parameter.

-- name: account_by_name
SELECT * FROM accounts WHERE name = :name;

-- name: accounts
SELECT a.name, a.created_at, a.rights, a.disabled_at, a.subject, COUNT(t.terminal_id) AS terminals
FROM accounts a LEFT JOIN terminals t ON t.account_id = a.account_id AND t.revoked_at IS NULL
GROUP BY a.account_id ORDER BY a.name;

-- name: set_account_rights
UPDATE accounts SET rights = :rights WHERE name = :name RETURNING account_id;

-- name: add_account
INSERT INTO accounts (account_id, name, password_hash, created_at)
VALUES (:account_id, :name, :password_hash, :now) ON CONFLICT DO NOTHING RETURNING account_id;

-- name: standing_of
SELECT a.rights AS account_rights, t.rights AS terminal_rights, t.revoked_at, a.disabled_at,
    p.rules, p.reported_at, p.findings, p.complete
FROM terminals t JOIN accounts a ON a.account_id = t.account_id LEFT JOIN postures p ON p.terminal_id = t.terminal_id
WHERE t.terminal_id = :terminal_id;

-- name: terminal
SELECT t.*, a.name AS account_name, a.disabled_at,
    (SELECT findings FROM postures p WHERE p.terminal_id = t.terminal_id) AS posture_findings
FROM terminals t JOIN accounts a ON a.account_id = t.account_id
WHERE t.terminal_id = :terminal_id;

-- name: terminal_by_key
SELECT t.*, a.name AS account_name, a.disabled_at,
    (SELECT findings FROM postures p WHERE p.terminal_id = t.terminal_id) AS posture_findings
FROM terminals t JOIN accounts a ON a.account_id = t.account_id
WHERE t.account_id = :account_id AND t.device_key = :device_key;

-- name: terminals_of_account
SELECT t.*, a.name AS account_name, a.disabled_at,
    (SELECT findings FROM postures p WHERE p.terminal_id = t.terminal_id) AS posture_findings
FROM terminals t JOIN accounts a ON a.account_id = t.account_id
WHERE t.account_id = :account_id AND t.revoked_at IS NULL ORDER BY t.name;

-- name: devices
-- For the hub's owner: those that are revoked as well, last. Every account where none is named.
SELECT t.*, a.name AS account_name, a.disabled_at, a.rights AS account_rights, p.findings AS posture_findings,
    p.reported_at AS posture_at, p.complete AS posture_complete
FROM terminals t JOIN accounts a ON a.account_id = t.account_id LEFT JOIN postures p ON p.terminal_id = t.terminal_id
WHERE :account = '' OR a.name = :account ORDER BY a.name, t.revoked_at IS NOT NULL, t.name;

-- name: device_of_account
SELECT t.*, a.name AS account_name, a.disabled_at,
    (SELECT findings FROM postures p WHERE p.terminal_id = t.terminal_id) AS posture_findings
FROM terminals t JOIN accounts a ON a.account_id = t.account_id
WHERE a.name = :account AND (t.terminal_id = :device OR t.name = :device) AND t.revoked_at IS NULL
ORDER BY t.terminal_id = :device DESC LIMIT 1;

-- name: terminal_to_revoke
SELECT * FROM terminals WHERE terminal_id = :terminal_id AND account_id = :account_id;

-- name: revoke_terminal
UPDATE terminals SET revoked_at = :now, name = :name, connection = connection + 1 WHERE terminal_id = :terminal_id;

-- name: set_terminal_rights
UPDATE terminals SET rights = :rights WHERE terminal_id = :terminal_id;

-- name: mark_cloned
UPDATE terminals SET cloned_at = :now WHERE terminal_id = :terminal_id AND cloned_at IS NULL AND revoked_at IS NULL
RETURNING terminal_id;

-- name: clear_cloned
UPDATE terminals SET cloned_at = NULL WHERE terminal_id = :terminal_id AND cloned_at IS NOT NULL RETURNING terminal_id;

-- name: disable_account
UPDATE accounts SET disabled_at = :now WHERE account_id = :account_id;

-- name: set_password
UPDATE accounts SET password_hash = :password_hash WHERE account_id = :account_id;

-- name: not_welcome
SELECT t.terminal_id FROM terminals t JOIN accounts a ON a.account_id = t.account_id
WHERE t.revoked_at IS NOT NULL OR a.disabled_at IS NOT NULL;

-- name: posture
SELECT * FROM postures WHERE terminal_id = :terminal_id;

-- name: save_posture
INSERT INTO postures (terminal_id, rules, reported_at, findings, complete, report, signature)
VALUES (:terminal_id, :rules, :now, :findings, :complete, :report, :signature)
ON CONFLICT (terminal_id) DO UPDATE SET rules = excluded.rules, reported_at = excluded.reported_at,
    findings = excluded.findings, complete = excluded.complete, report = excluded.report, signature = excluded.signature;

-- name: postures_due
SELECT t.terminal_id FROM terminals t LEFT JOIN postures p ON p.terminal_id = t.terminal_id
WHERE t.revoked_at IS NULL AND t.receiver = 1 AND (
    p.terminal_id IS NULL OR p.rules <> :rules OR p.findings > 0 OR p.complete = 0 OR p.reported_at <= :before);

-- name: count_terminals
SELECT COUNT(*) AS terminals FROM terminals WHERE account_id = :account_id AND revoked_at IS NULL;

-- name: name_is_taken
SELECT 1 FROM terminals WHERE account_id = :account_id AND name = :name AND terminal_id <> :terminal_id;

-- name: add_terminal
INSERT INTO terminals (terminal_id, account_id, name, device_key, sealing_key, device, address, created_at, last_seen_at,
    rights)
VALUES (:terminal_id, :account_id, :name, :device_key, :sealing_key, :device, :address, :now, :now, :rights);

-- name: enrol_again
UPDATE terminals SET name = :name, sealing_key = :sealing_key, device = :device, address = :address, last_seen_at = :now
WHERE terminal_id = :terminal_id;

-- name: count_login
-- Nothing where it was revoked, or its account disabled, since it was looked up.
UPDATE terminals SET connection = connection + 1, receiver = receiver OR :receives, device = :device, address = :address,
    last_seen_at = :now
WHERE terminal_id = :terminal_id AND revoked_at IS NULL
    AND (SELECT disabled_at FROM accounts a WHERE a.account_id = terminals.account_id) IS NULL
RETURNING connection;

-- name: seen
UPDATE terminals SET last_seen_at = :now WHERE terminal_id = :terminal_id;

-- name: update_terminal
UPDATE terminals SET name = :name, device = :device WHERE terminal_id = :terminal_id;

-- name: is_current
SELECT 1 FROM terminals WHERE terminal_id = :terminal_id AND connection = :connection;

-- name: forget_installed
DELETE FROM installed WHERE terminal_id = :terminal_id;

-- name: add_installed
INSERT INTO installed (terminal_id, program_id, version, kind, digest)
VALUES (:terminal_id, :program_id, :version, :kind, :digest) ON CONFLICT DO NOTHING;

-- name: installed_and_known
SELECT i.terminal_id, i.version, i.kind, i.digest, k.version AS release, k.facts
FROM terminals t CROSS JOIN installed i ON i.terminal_id = t.terminal_id AND i.program_id = :program_id
LEFT JOIN installers k ON k.digest = i.digest
WHERE t.account_id = :account_id;

-- name: add_object
INSERT INTO objects (digest, size, stored_size, chunks, created_at)
VALUES (:digest, :size, :stored_size, :chunks, :now) ON CONFLICT DO NOTHING;

-- name: object
SELECT * FROM objects WHERE digest = :digest;

-- name: add_program
INSERT INTO programs (program_id, title, created_at) VALUES (:program_id, :title, :now) ON CONFLICT DO NOTHING;

-- name: retitle_program
UPDATE programs SET title = :title WHERE program_id = :program_id;

-- name: add_release
INSERT INTO releases (program_id, version, version_key, channel, created_at)
VALUES (:program_id, :version, :version_key, :channel, :now) ON CONFLICT DO NOTHING;

-- name: release
SELECT * FROM releases WHERE program_id = :program_id AND version = :version;

-- name: mark_release
UPDATE releases SET yanked = :yanked, channel = :channel WHERE program_id = :program_id AND version = :version;

-- name: mark_program
UPDATE programs SET retired = :retired WHERE program_id = :program_id;

-- name: aliases_of_program
SELECT os_type, package_name FROM aliases WHERE program_id = :program_id ORDER BY os_type, package_name;

-- name: aliases_of_package
SELECT os_type, program_id FROM aliases
WHERE os_type IN ('android', 'ios', 'linux', 'macos', 'windows', 'other') AND package_name = :package_name;

-- name: add_alias
INSERT INTO aliases (os_type, package_name, program_id)
VALUES (:os_type, :package_name, :program_id) ON CONFLICT DO NOTHING;

-- name: remove_alias
DELETE FROM aliases WHERE os_type = :os_type AND package_name = :package_name AND program_id = :program_id;

-- name: installer
SELECT * FROM installers WHERE digest = :digest;

-- name: add_installer
INSERT INTO installers (digest, program_id, version, kind, package_name, file_version, file_name, facts, size, created_at,
    verdict, finding)
VALUES (:digest, :program_id, :version, :kind, :package_name, :file_version, :file_name, :facts, :size, :now,
    :verdict, :finding);

-- name: correct_installer
UPDATE installers SET kind = :kind, package_name = :package_name, file_version = :file_version, facts = :facts
WHERE digest = :digest;

-- name: installers_of_release
SELECT * FROM installers WHERE program_id = :program_id AND version = :version ORDER BY digest;

-- name: candidates_of_program
SELECT i.*, r.channel FROM programs p CROSS JOIN releases r ON r.program_id = p.program_id
CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
WHERE p.program_id = :program_id AND p.retired = 0 AND r.yanked = 0 AND i.verdict = 'clean'
    AND (:version <> '' OR r.channel IN ('stable', :channel))
ORDER BY i.digest;

-- name: withheld_of_program
SELECT i.version, i.file_name, i.verdict, i.finding FROM releases r
CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
WHERE r.program_id = :program_id AND r.yanked = 0 AND i.verdict <> 'clean'
    AND (:version <> '' OR r.channel IN ('stable', :channel))
ORDER BY r.version_key DESC, i.digest;

-- name: releases_of_program
SELECT * FROM releases WHERE program_id = :program_id ORDER BY version_key DESC, version;

-- name: catalogue_page
SELECT i.*, p.title, p.retired, r.version_key, r.channel, r.yanked, o.stored_size
FROM (SELECT * FROM programs WHERE program_id > :after ORDER BY program_id LIMIT :count) p
CROSS JOIN releases r ON r.program_id = p.program_id
CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
JOIN objects o ON o.digest = i.digest
ORDER BY i.program_id, r.version_key DESC, i.kind, i.file_name, i.digest;

-- name: catalogue_of_program
SELECT i.*, p.title, p.retired, r.channel, r.yanked, o.stored_size
FROM programs p CROSS JOIN releases r ON r.program_id = p.program_id
CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
JOIN objects o ON o.digest = i.digest
WHERE p.program_id = :program_id
ORDER BY r.version_key DESC, i.kind, i.file_name, i.digest;

-- name: catalogue_entry
SELECT i.*, p.title, p.retired, r.channel, r.yanked, o.stored_size FROM installers i
JOIN objects o ON o.digest = i.digest JOIN programs p ON p.program_id = i.program_id
JOIN releases r ON r.program_id = i.program_id AND r.version = i.version
WHERE i.digest = :digest;

-- name: program
SELECT * FROM programs WHERE program_id = :program_id;

-- name: programs_near
SELECT program_id FROM (
    SELECT program_id FROM programs WHERE program_id >= :program AND retired <= :retired ORDER BY program_id LIMIT 100)
UNION
SELECT program_id FROM (
    SELECT program_id FROM programs WHERE program_id < :program AND retired <= :retired ORDER BY program_id DESC LIMIT 100)
UNION
SELECT p.program_id FROM json_each(:slips) s CROSS JOIN programs p ON p.program_id = s.value
WHERE p.retired <= :retired;

-- name: programs_page
SELECT p.program_id, p.title,
    (SELECT r.version FROM releases r WHERE r.program_id = p.program_id AND r.yanked = 0 AND EXISTS (
         SELECT 1 FROM installers i
         WHERE i.program_id = r.program_id AND i.version = r.version AND i.verdict = 'clean')
     ORDER BY r.channel = 'stable' DESC, r.version_key DESC, r.version LIMIT 1) AS newest,
    (SELECT GROUP_CONCAT(DISTINCT i.kind) FROM releases r
     CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
     WHERE r.program_id = p.program_id AND r.yanked = 0 AND i.verdict = 'clean') AS kinds
FROM programs p
WHERE p.program_id > :after AND p.retired = 0
    AND EXISTS (SELECT 1 FROM releases r WHERE r.program_id = p.program_id AND r.yanked = 0)
ORDER BY p.program_id LIMIT :count;

-- name: programs_search
-- Goes through all programs in the order they lie in, which takes a tenth of the time of going by the index.
SELECT p.program_id, p.title,
    (SELECT r.version FROM releases r WHERE r.program_id = p.program_id AND r.yanked = 0 AND EXISTS (
         SELECT 1 FROM installers i
         WHERE i.program_id = r.program_id AND i.version = r.version AND i.verdict = 'clean')
     ORDER BY r.channel = 'stable' DESC, r.version_key DESC, r.version LIMIT 1) AS newest,
    (SELECT GROUP_CONCAT(DISTINCT i.kind) FROM releases r
     CROSS JOIN installers i ON i.program_id = r.program_id AND i.version = r.version
     WHERE r.program_id = p.program_id AND r.yanked = 0 AND i.verdict = 'clean') AS kinds
FROM (
    SELECT program_id, title FROM programs NOT INDEXED
    WHERE (title LIKE :pattern ESCAPE '!' OR program_id LIKE :pattern ESCAPE '!') AND program_id > :after AND retired = 0
        AND EXISTS (SELECT 1 FROM releases r WHERE r.program_id = programs.program_id AND r.yanked = 0)
    ORDER BY program_id LIMIT :count) p
ORDER BY p.program_id;

-- name: installed_of_programs
SELECT i.program_id, i.terminal_id
FROM json_each(:program_ids) wanted CROSS JOIN installed i ON i.program_id = wanted.value
JOIN terminals t ON t.terminal_id = i.terminal_id
WHERE t.account_id = :account_id;

-- name: sync_by_request_key
SELECT * FROM syncs WHERE initiator = :initiator AND request_key = :request_key;

-- name: add_sync
INSERT INTO syncs (sync_id, account_id, initiator, request_key, program_id, version, created_at, undoes)
VALUES (:sync_id, :account_id, :initiator, :request_key, :program_id, :version, :now, :undoes);

-- name: add_delivery
INSERT INTO deliveries (delivery_id, sync_id, terminal_id, position, digest, state, reason, detail, version, mismatches,
    revision, is_final, created_at, changed_at, expires_at, deadline_at, follows, before_digest)
VALUES (:delivery_id, :sync_id, :terminal_id, :position, :digest, :state, :reason, :detail, :version, :mismatches,
    :revision, :is_final, :now, :now, :expires_at, :deadline_at, :follows, :before_digest);

-- name: last_revision
SELECT COALESCE(MAX(revision), 0) AS revision FROM deliveries;

-- name: sync_of_account
SELECT * FROM syncs WHERE sync_id = :sync_id AND account_id = :account_id;

-- name: targets_of_sync
SELECT d.*, t.name, t.revoked_at, i.kind, i.file_name, i.size
FROM deliveries d JOIN terminals t ON t.terminal_id = d.terminal_id LEFT JOIN installers i ON i.digest = d.digest
WHERE d.sync_id = :sync_id ORDER BY d.position;

-- name: changed_targets
SELECT d.*, t.name, i.kind, i.file_name, i.size
FROM syncs s JOIN deliveries d ON d.sync_id = s.sync_id AND d.revision > :since
JOIN terminals t ON t.terminal_id = d.terminal_id LEFT JOIN installers i ON i.digest = d.digest
WHERE s.initiator = :initiator AND s.noted = 0 ORDER BY d.revision LIMIT :count;

-- name: ended_not_noted
SELECT sync_id, program_id, outcome FROM syncs
WHERE initiator = :initiator AND noted = 0 AND ended_at IS NOT NULL ORDER BY created_at LIMIT :count;

-- name: note_sync
UPDATE syncs SET noted = 1
WHERE sync_id = :sync_id AND initiator = :initiator AND ended_at IS NOT NULL RETURNING sync_id;

-- name: count_states
SELECT state, COUNT(*) AS deliveries FROM deliveries WHERE sync_id = :sync_id GROUP BY state;

-- name: count_open
SELECT COUNT(*) AS open FROM deliveries WHERE sync_id = :sync_id AND is_final = 0;

-- name: end_sync
UPDATE syncs SET ended_at = :now, outcome = :outcome WHERE sync_id = :sync_id AND ended_at IS NULL;

-- name: owed
SELECT d.*, s.program_id, s.initiator, a.name AS initiator_name, t.name, i.kind, i.file_name, i.size, i.package_name,
    i.file_version
FROM deliveries d JOIN syncs s ON s.sync_id = d.sync_id JOIN terminals t ON t.terminal_id = d.terminal_id
JOIN terminals a ON a.terminal_id = s.initiator JOIN installers i ON i.digest = d.digest
WHERE d.terminal_id = :terminal_id AND d.is_final = 0 AND d.follows IS NULL AND d.retry_at <= :hub_now
    AND d.state IN ('queued', 'offered', 'downloading', 'verifying') AND i.verdict = 'clean'
    AND NOT EXISTS (
        SELECT 1 FROM deliveries o JOIN syncs p ON p.sync_id = o.sync_id
        WHERE o.terminal_id = d.terminal_id AND o.is_final = 0 AND o.state = 'installing' AND p.program_id = s.program_id)
ORDER BY d.position LIMIT 1;

-- name: installed_digest
SELECT digest, version FROM installed WHERE terminal_id = :terminal_id AND program_id = :program_id;

-- name: delivery_of_terminal
SELECT * FROM deliveries WHERE delivery_id = :delivery_id AND terminal_id = :terminal_id;

-- name: move_delivery
UPDATE deliveries SET state = :state, reason = :reason, detail = :detail, is_final = :is_final, connection = :connection,
    revision = :revision, changed_at = :now, sent = sent + :sent, deadline_at = :deadline_at,
    retry_at = :retry_at, tries = tries + :tried
WHERE delivery_id = :delivery_id AND is_final = 0
RETURNING sync_id, (SELECT initiator FROM syncs WHERE syncs.sync_id = deliveries.sync_id) AS initiator;

-- name: followers
SELECT * FROM deliveries WHERE follows = :delivery_id AND is_final = 0 AND follows IS NOT NULL ORDER BY position;

-- name: follow
UPDATE deliveries SET follows = :leader
WHERE follows = :delivery_id AND is_final = 0 AND follows IS NOT NULL AND delivery_id <> :leader;

-- name: lead
UPDATE deliveries SET follows = NULL WHERE delivery_id = :delivery_id;

-- name: leader
SELECT * FROM deliveries
WHERE terminal_id = :terminal_id AND is_final = 0 AND digest = :digest AND follows IS NULL ORDER BY position LIMIT 1;

-- name: had_before
UPDATE deliveries SET before_digest = :digest
WHERE delivery_id = :delivery_id OR (follows = :delivery_id AND is_final = 0 AND follows IS NOT NULL);

-- name: overdue
SELECT * FROM deliveries WHERE is_final = 0 AND deadline_at <= :hub_now ORDER BY deadline_at LIMIT :count;

-- name: put_off_until_now
SELECT * FROM deliveries WHERE is_final = 0 AND retry_at > 0 AND retry_at <= :hub_now LIMIT :count;

-- name: may_be_claimed
UPDATE deliveries SET retry_at = 0 WHERE delivery_id = :delivery_id;

-- name: restored_of
SELECT d.*, s.program_id, r.had_digest FROM restored r CROSS JOIN deliveries d ON d.delivery_id = r.delivery_id
JOIN syncs s ON s.sync_id = d.sync_id WHERE d.terminal_id = :terminal_id;

-- name: forget_restored
DELETE FROM restored WHERE delivery_id = :delivery_id;

-- name: hub_clock
SELECT seconds FROM hub_clock;

-- name: keep_hub_clock
UPDATE hub_clock SET seconds = MAX(seconds, :seconds);

-- name: add_sent
UPDATE deliveries SET sent = sent + :sent, revision = :revision WHERE delivery_id = :delivery_id;

-- name: open_deliveries
SELECT * FROM deliveries WHERE sync_id = :sync_id AND is_final = 0;

-- name: superseded_by
SELECT d.* FROM deliveries d JOIN syncs s ON s.sync_id = d.sync_id
WHERE d.terminal_id = :terminal_id AND d.is_final = 0 AND d.state <> 'installing' AND s.program_id = :program_id
    AND d.digest <> :digest;

-- name: newer_request
SELECT d.version FROM deliveries d JOIN syncs s ON s.sync_id = d.sync_id
WHERE d.terminal_id = :terminal_id AND d.is_final = 0 AND d.position > :position AND d.digest <> :digest
    AND s.program_id = (SELECT program_id FROM syncs WHERE sync_id = :sync_id)
ORDER BY d.position DESC LIMIT 1;

-- name: installing_of_program
SELECT d.terminal_id, d.digest, d.version
FROM terminals t CROSS JOIN deliveries d ON d.terminal_id = t.terminal_id AND d.is_final = 0 AND d.state = 'installing'
JOIN syncs s ON s.sync_id = d.sync_id
WHERE t.account_id = :account_id AND s.program_id = :program_id;

-- name: under_way_on
SELECT * FROM deliveries
WHERE terminal_id = :terminal_id AND is_final = 0 AND state IN ('offered', 'downloading', 'verifying')
    AND follows IS NULL;

-- name: open_on
SELECT * FROM deliveries WHERE terminal_id = :terminal_id AND is_final = 0 AND state = :state AND follows IS NULL;

-- name: give_reason
UPDATE deliveries SET reason = :reason, revision = :revision + changed.number, changed_at = :now
FROM (
    SELECT delivery_id, ROW_NUMBER() OVER (ORDER BY position) AS number FROM deliveries
    WHERE terminal_id = :terminal_id AND is_final = 0 AND state = :state AND reason <> :reason
        AND reason IN ('', 'offline', 'waiting', 'quiet-hours', 'posture-failed', 'not-allowed')) AS changed
WHERE deliveries.delivery_id = changed.delivery_id
RETURNING (SELECT initiator FROM syncs WHERE syncs.sync_id = deliveries.sync_id) AS initiator;

-- name: under_way_anywhere
SELECT DISTINCT terminal_id FROM deliveries WHERE is_final = 0 AND state IN ('offered', 'downloading', 'verifying');

-- name: nobody_is_here
UPDATE deliveries SET reason = 'offline', revision = :revision + changed.number, changed_at = :now
FROM (
    SELECT delivery_id, ROW_NUMBER() OVER (ORDER BY position) AS number FROM deliveries
    WHERE is_final = 0 AND state IN ('queued', 'installing') AND reason IN ('', 'waiting', 'quiet-hours', 'posture-failed', 'not-allowed')) AS changed
WHERE deliveries.delivery_id = changed.delivery_id
RETURNING revision;

-- name: history_page
SELECT s.*, t.name AS initiator_name,
    (SELECT COALESCE(SUM(i.size), 0) FROM deliveries d JOIN installers i ON i.digest = d.digest
     WHERE d.sync_id = s.sync_id AND d.state = 'done') AS size,
    (SELECT COALESCE(SUM(d.sent), 0) FROM deliveries d WHERE d.sync_id = s.sync_id) AS sent
FROM syncs s JOIN terminals t ON t.terminal_id = s.initiator
WHERE s.account_id = :account_id AND (s.created_at, s.sync_id) < (:before_at, :before_id)
ORDER BY s.created_at DESC, s.sync_id DESC LIMIT :count;

-- name: last_audit
SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1;

-- name: add_audit
INSERT INTO audit (sequence, at, actor, action, subject, detail, hash)
VALUES (:sequence, :at, :actor, :action, :subject, :detail, :hash);

-- name: audit_page
-- As bytes: what somebody has edited need not be text, and has to be read all the same.
SELECT sequence, at, CAST(actor AS BLOB) AS actor, CAST(action AS BLOB) AS action, CAST(subject AS BLOB) AS subject,
    CAST(detail AS BLOB) AS detail, CAST(hash AS BLOB) AS hash
FROM audit WHERE sequence > :after ORDER BY sequence LIMIT :count;

-- name: audit_heads
SELECT sequence, CAST(hash AS BLOB) AS hash, at, CAST(signature AS BLOB) AS signature FROM audit_heads ORDER BY sequence;

-- name: add_audit_head
INSERT INTO audit_heads (sequence, hash, at, signature) VALUES (:sequence, :hash, :at, :signature)
ON CONFLICT DO NOTHING RETURNING sequence;

-- name: open_of_terminal
SELECT * FROM deliveries WHERE terminal_id = :terminal_id AND is_final = 0 AND state <> 'installing' ORDER BY position;

-- name: open_asked_by
SELECT d.* FROM syncs s CROSS JOIN deliveries d ON d.sync_id = s.sync_id
WHERE s.initiator = :initiator AND s.ended_at IS NULL AND d.is_final = 0 AND d.state <> 'installing' ORDER BY d.terminal_id, d.position;

-- name: open_of_object
SELECT * FROM deliveries WHERE digest = :digest AND is_final = 0 AND state <> 'installing' ORDER BY terminal_id, position;

-- name: mark_enrolled
UPDATE terminals SET enrolled_by = :how, tags = :tags WHERE terminal_id = :terminal_id;

-- name: revoked_key
SELECT 1 FROM terminals WHERE device_key = :device_key AND revoked_at IS NOT NULL;

-- name: live_key
SELECT 1 FROM terminals WHERE device_key = :device_key AND revoked_at IS NULL;

-- name: paired_terminal
SELECT account_id FROM terminals WHERE device_key = :device_key AND enrolled_by = 'pairing' AND revoked_at IS NULL
ORDER BY created_at DESC LIMIT 1;

-- name: account_by_id
SELECT * FROM accounts WHERE account_id = :account_id;

-- name: account_by_subject
SELECT * FROM accounts WHERE subject = :subject;

-- name: link_account
UPDATE accounts SET subject = :subject WHERE name = :name;

-- name: add_join_key
INSERT INTO join_keys (join_key_id, account_id, digest, tags, uses_left, uses, expires_at, created_at)
VALUES (:join_key_id, :account_id, :digest, :tags, :uses, :uses, :expires_at, :now);

-- name: join_key_by_digest
SELECT * FROM join_keys WHERE digest = :digest;

-- name: join_keys
SELECT k.*, a.name AS account_name FROM join_keys k JOIN accounts a ON a.account_id = k.account_id
ORDER BY k.created_at, k.join_key_id;

-- name: use_join_key
UPDATE join_keys SET uses_left = uses_left - 1 WHERE join_key_id = :join_key_id AND uses_left > 0 RETURNING uses_left;

-- name: revoke_join_key
UPDATE join_keys SET revoked_at = COALESCE(revoked_at, :now) WHERE join_key_id = :join_key_id RETURNING account_id;

-- name: keep_verdict
INSERT INTO verdicts (digest, engine, verdict, rules, findings, detail, scanned_at)
VALUES (:digest, :engine, :verdict, :rules, :findings, :detail, :now)
ON CONFLICT (digest, engine) DO UPDATE SET verdict = excluded.verdict, rules = excluded.rules,
    findings = excluded.findings, detail = excluded.detail, scanned_at = excluded.scanned_at;

-- name: verdicts_of
SELECT * FROM verdicts WHERE digest = :digest ORDER BY engine;

-- name: set_verdict
UPDATE installers SET verdict = :verdict, finding = :finding WHERE digest = :digest;

-- name: to_scan
SELECT i.digest, i.file_name FROM installers i LEFT JOIN verdicts v ON v.digest = i.digest AND v.engine = :engine
WHERE i.digest > :after AND (i.verdict = 'not-scanned') = :held AND (v.digest IS NULL OR v.rules <> :rules
    OR (v.verdict = 'not-scanned' AND v.findings = '[]' AND v.scanned_at < :before))
ORDER BY i.digest LIMIT :count;

-- name: scan_all_again
UPDATE verdicts SET rules = '';

-- name: count_verdicts
SELECT verdict, COUNT(*) AS installers FROM installers GROUP BY verdict;

-- name: installers_after
SELECT * FROM installers WHERE digest > :after ORDER BY digest LIMIT :count;

-- name: withheld_after
SELECT * FROM installers WHERE digest > :after AND verdict IN ('infected', 'suspicious') ORDER BY digest LIMIT :count;

-- name: terminals_with
SELECT a.name AS account, t.name, t.terminal_id FROM installed h
JOIN terminals t ON t.terminal_id = h.terminal_id JOIN accounts a ON a.account_id = t.account_id
WHERE h.program_id = :program_id AND h.digest = :digest AND t.revoked_at IS NULL ORDER BY a.name, t.name;
