"""The scrub: what is damaged, missing or superfluous is found and named; when the next one is due."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hub.admin import ask, serve_admin
from hub.app import Hub
from hub.config import Settings
from hub.scrub import (
    AFTER_START_SECONDS,
    EVERY_SECONDS,
    RECORD_NAME,
    ScrubReport,
    keep_report,
    log_report,
    scrub,
    seconds_until_due,
)
from tests.hub.rooms import open_rooms, publish
from tests.hub.test_objects import flip_bit

SOUND = ScrubReport(0, 0, ())


async def scrubbed(hub: Hub) -> list[tuple[str, str]]:
    report = await scrub(hub.store, hub.objects, hub.settings.data_folder)
    return [(finding.kind, finding.name) for finding in report.findings]


def file_of(hub: Hub, digest: str, part: str) -> Path:
    return hub.settings.data_folder / "objects" / digest[:2] / f"{digest}.{part}"


async def test_a_sound_hub_is_sound_and_every_stored_byte_was_read(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        rows = [await publish(hub, tmp_path, version) for version in ("1.0", "2.0")]
        report = await scrub(hub.store, hub.objects, hub.settings.data_folder)
        assert report == ScrubReport(2, sum(row.stored_size for row in rows), ())
        assert report.is_sound
        assert list(hub.settings.data_folder.glob(".check-*")) == []


async def test_damaged_missing_and_unnamed_files_are_named_and_publishing_again_mends(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        damaged = (await publish(hub, tmp_path, "1.0")).digest
        missing = (await publish(hub, tmp_path, "2.0")).digest
        flip_bit(file_of(hub, damaged, "pack"), 77)
        file_of(hub, missing, "pack").unlink()
        (hub.settings.data_folder / "objects" / "notes").write_bytes(b"mine")
        report = await scrub(hub.store, hub.objects, hub.settings.data_folder)
        assert not report.is_sound
        found = {(finding.kind, finding.name) for finding in report.findings}
        assert found == {("damaged", damaged), ("damaged", missing), ("unnamed", "notes")}
        aside = f"{damaged[:2]}/{damaged}.pack.damaged"
        assert ("set-aside", aside) in await scrubbed(hub), "the next one still names it"
        assert await scrubbed(hub) != []
        for version in ("1.0", "2.0"):
            await publish(hub, tmp_path, version)
        assert await scrubbed(hub) == [("unnamed", "notes")]


async def test_an_object_of_which_nothing_is_left_is_missing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        digest = (await publish(hub, tmp_path)).digest
        for part in ("pack", "manifest"):
            file_of(hub, digest, part).unlink()
        assert await scrubbed(hub) == [("missing", digest)]


async def test_a_row_that_names_one_that_is_not_there_is_found(tmp_path: Path) -> None:
    async with open_rooms(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "hub" / "hub.db")) as database, database:
        database.execute("INSERT INTO installed VALUES ('t-nobody', 'hello', '1', 'deb', x'00')")
    async with open_rooms(tmp_path) as hub:
        report = await scrub(hub.store, hub.objects, hub.settings.data_folder)
        assert [finding.kind for finding in report.findings] == ["database"]
        assert "installed names a row of terminals" in report.findings[0].detail


async def test_a_damaged_page_of_the_database_is_found(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        for number in range(300):
            await hub.accounts._store.transaction(
                lambda t, n=number: t.rows(  # type: ignore[misc]
                    "add_account", account_id=f"a-{n}", name=f"name {n}", password_hash="x" * 100, now=1.0
                )
            )
    path = tmp_path / "hub" / "hub.db"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"name 299")
    data[at : at + 8] = b"name 2X9"  # the table and its index no longer agree
    path.write_bytes(data)
    async with open_rooms(tmp_path) as hub:
        assert {kind for kind, _ in await scrubbed(hub)} == {"database"}


async def test_check_goes_through_a_running_hub_and_in_process_and_tells_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data=str(tmp_path / "hub"), disk_reserve_bytes=0)
    told: list[str] = []
    async with open_rooms(tmp_path) as hub, serve_admin(hub):
        await publish(hub, tmp_path)
        running = await ask(settings, "check", {}, lambda what, done, total: told.append(what))
    assert told
    in_process = await ask(settings, "check", {})
    assert json.loads(json.dumps(in_process)) == running
    assert running["sound"] and running["objects"] == 1
    assert (tmp_path / "hub" / RECORD_NAME).stat().st_mode & 0o777 == 0o600, "as everything there"
    assert caplog.records == []


def test_the_next_scrub_is_due_after_a_week_and_no_step_of_the_calendar_makes_it_hang_or_loop(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    assert seconds_until_due(tmp_path, now) == AFTER_START_SECONDS, "never yet"
    keep_report(tmp_path, SOUND, now)
    assert seconds_until_due(tmp_path, now + 86_400) == EVERY_SECONDS - 86_400
    assert seconds_until_due(tmp_path, now + 400 * 86_400) == AFTER_START_SECONDS, "overdue, or a step forward"
    assert seconds_until_due(tmp_path, now - 400 * 86_400) == AFTER_START_SECONDS, "a step back: as if never"
    (tmp_path / RECORD_NAME).write_bytes(b"{half")
    assert seconds_until_due(tmp_path, now) == AFTER_START_SECONDS


async def test_a_gentle_scrub_reads_no_faster_than_it_is_allowed(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        stored = (await publish(hub, tmp_path)).stored_size
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await scrub(hub.store, hub.objects, hub.settings.data_folder, bytes_per_second=stored / 0.3)
        assert loop.time() - began_at >= 0.3


async def test_what_a_scrub_finds_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_rooms(tmp_path) as hub:
        digest = (await publish(hub, tmp_path)).digest
        flip_bit(file_of(hub, digest, "pack"), 9)
        log_report(await scrub(hub.store, hub.objects, hub.settings.data_folder))
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2 and "was set aside" in said[0] and digest in said[1]
