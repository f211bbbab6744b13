"""The audit log: whole whatever dies, and found out whatever somebody does to it."""

import asyncio
import json
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins

from hub import audit as audit_module
from hub import auditing
from hub.admin import ask, serve_admin
from hub.app import Hub, open_hub, serve_hub
from hub.audit import BEFORE_THE_FIRST, Chain, Fault, Head, read_head, row_hash
from hub.backup import restore_backup, write_backup
from hub.config import Settings
from hub.scrub import scrub
from hub.store import QUERIES
from protocol import keys
from protocol.errors import BadDataError, UsageError
from tests.harness.hubs import hub_settings
from tests.hub.rooms import add_account, open_rooms
from tests.safety import ledger

HUB_KEY = keys.SigningKey(bytes(range(32)))
ROWS = 24
SIGNED = 10  # the hub has signed the head when there were so many
SCHEMA = Path(audit_module.__file__).parent / "store" / "schema.sql"
COLUMNS = ("at", "actor", "action", "subject", "detail")


# --- a log, and what somebody may do to it --------------------------------------------------------------------------


@cache
def written_log() -> sqlite3.Connection:
    """A log of ROWS rows, written as `record` writes, with one head signed."""
    log = sqlite3.connect(":memory:")
    log.executescript(SCHEMA.read_text())
    log.row_factory = sqlite3.Row
    before = BEFORE_THE_FIRST
    for sequence in range(1, ROWS + 1):
        row = (1e9 + sequence, "operator", "account.allow", f"name {sequence}", '{"right":"publish"}')
        before = row_hash(before, sequence, *row)
        log.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence, *row, before))
        if sequence == SIGNED:
            head = signed_head(log)
            parameters = (head.sequence, head.digest, head.at, head.signature)
            log.execute("INSERT INTO audit_heads VALUES (?, ?, ?, ?)", parameters)
    log.commit()
    return log


@contextmanager
def copied_log() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as log:
        written_log().backup(log)
        log.row_factory = sqlite3.Row
        yield log


def signed_head(log: sqlite3.Connection, key: keys.SigningKey = HUB_KEY) -> Head:
    row = log.execute(QUERIES["last_audit"]).fetchone()
    signature = key.sign(keys.audit_head_bytes(sequence=row["sequence"], digest=row["hash"], at=2e9))
    fingerprint = keys.fingerprint(key.public)
    return Head(sequence=row["sequence"], digest=row["hash"], at=2e9, fingerprint=fingerprint, signature=signature)


def fault_of(log: sqlite3.Connection, kept: Head | None = None, rows_per_page: int = 7) -> Fault | None:
    fingerprint = keys.fingerprint(HUB_KEY.public)
    heads = [
        Head(sequence=row["sequence"], digest=row["hash"], at=row["at"], fingerprint=fingerprint, signature=row[3])
        for row in log.execute(QUERIES["audit_heads"])
    ]
    chain = Chain(HUB_KEY.public, heads, kept)
    after = -(2**63)
    while page := log.execute(QUERIES["audit_page"], {"after": after, "count": rows_per_page}).fetchall():
        chain.read(page)
        after = page[-1]["sequence"]
    return chain.end()


def chained_anew(log: sqlite3.Connection, first: int) -> None:
    """Give every row from `first` on the hash it would have: what somebody does who knows how the log is made."""
    row = log.execute("SELECT hash FROM audit WHERE sequence = ?", (first - 1,)).fetchone()
    before = row["hash"] if row else BEFORE_THE_FIRST
    for row in log.execute("SELECT * FROM audit WHERE sequence >= ? ORDER BY sequence", (first,)).fetchall():
        before = row_hash(before, row["sequence"], *(row[name] for name in COLUMNS))
        log.execute("UPDATE audit SET hash = ? WHERE sequence = ?", (before, row["sequence"]))


def moved(log: sqlite3.Connection, first: int, by: int) -> None:
    """Give every row from `first` on another number."""
    log.execute("UPDATE audit SET sequence = -(sequence + ?) WHERE sequence >= ?", (by, first))
    log.execute("UPDATE audit SET sequence = -sequence WHERE sequence < 0")


@dataclass(frozen=True)
class Tampering:
    """What was done: by name, at which row, and with the hashes made right again from there on or not."""

    what: str
    row: int
    other: int
    column: str
    chains_anew: bool

    def do(self, log: sqlite3.Connection) -> int:
        """Do it; return the first row that is not as it was, or is gone."""
        first = getattr(self, f"_{self.what}")(log)
        if self.chains_anew:
            chained_anew(log, first)
        return int(first)

    def _edit(self, log: sqlite3.Connection) -> int:
        value = 5.0 if self.column == "at" else "edited"
        log.execute(f"UPDATE audit SET {self.column} = ? WHERE sequence = ?", (value, self.row))
        return self.row

    def _blob(self, log: sqlite3.Connection) -> int:
        log.execute(f"UPDATE audit SET {self.column} = x'ff00fe' WHERE sequence = ?", (self.row,))
        return self.row

    def _delete(self, log: sqlite3.Connection) -> int:
        log.execute("DELETE FROM audit WHERE sequence = ?", (self.row,))
        return self.row

    def _delete_and_close_the_gap(self, log: sqlite3.Connection) -> int:
        self._delete(log)
        moved(log, self.row, -1)
        return self.row

    def _insert(self, log: sqlite3.Connection) -> int:
        moved(log, self.row, 1)
        row = (self.row, 1e9, "operator", "account.allow", "eve", "{}", bytes(32))
        log.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self.row

    def _insert_before_the_first(self, log: sqlite3.Connection) -> int:
        row = (-self.row + 1, 1e9, "operator", "account.allow", "eve", "{}", bytes(32))
        log.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return -self.row + 1

    def _swap(self, log: sqlite3.Connection) -> int:
        log.execute("UPDATE audit SET sequence = -sequence WHERE sequence IN (?, ?)", (self.row, self.other))
        for was, becomes in ((self.row, self.other), (self.other, self.row)):
            log.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (becomes, -was))
        return min(self.row, self.other)

    def _cut_off(self, log: sqlite3.Connection) -> int:
        log.execute("DELETE FROM audit WHERE sequence >= ?", (self.row,))
        return self.row


DOINGS = tuple(name[1:] for name in vars(Tampering) if name.startswith("_") and not name.startswith("__"))


@st.composite
def tamperings(draw: st.DrawFn) -> Tampering:
    row = draw(st.integers(1, ROWS))
    what = draw(st.sampled_from(DOINGS))
    other = draw(st.integers(1, ROWS).filter(lambda other: other != row))
    if what == "insert_before_the_first":
        return Tampering(what, row, other, "at", chains_anew=False)
    column = draw(st.sampled_from(COLUMNS[1:] if what == "blob" else COLUMNS))
    return Tampering(what, row, other, column, chains_anew=what != "blob" and draw(st.booleans()))


@settings(max_examples=400, deadline=None)
@given(tamperings())
def test_whatever_is_done_to_a_log_is_found_with_a_head_kept_elsewhere(tampering: Tampering) -> None:
    kept = signed_head(written_log())
    with copied_log() as log:
        first = tampering.do(log)
        ledger.count("audit", "tamperings")
        fault = fault_of(log, kept)
        assert fault is not None, tampering
        ledger.count("audit", "found")
        if not tampering.chains_anew:
            assert fault.sequence == first, tampering  # the row itself is named
        else:  # the first head behind it tells
            assert fault.sequence in (first, SIGNED if first <= SIGNED else ROWS, *range(first, ROWS + 1)), tampering


@settings(max_examples=200, deadline=None)
@given(tamperings())
def test_without_one_all_is_found_that_is_not_the_end_or_a_log_written_anew(tampering: Tampering) -> None:
    with copied_log() as log:
        first = tampering.do(log)
        if tampering.chains_anew and first > SIGNED:
            return  # the chain has no key: only a head tells, and the hub's own is of row SIGNED
        if (tampering.what == "cut_off" and first > SIGNED) or (tampering.what.startswith("delete") and first == ROWS):
            return
        ledger.count("audit", "tamperings")
        assert fault_of(log) is not None, tampering
        ledger.count("audit", "found")


@pytest.mark.parametrize("rows_per_page", [1, 7, ROWS, 1_000])
def test_a_log_that_nobody_touched_is_whole_and_its_growth_is_no_fault(rows_per_page: int) -> None:
    kept = signed_head(written_log())
    with copied_log() as log:
        assert fault_of(log, rows_per_page=rows_per_page) is None
        assert fault_of(log, kept, rows_per_page) is None
        row = (3e9, "operator", "account.deny", "more", "{}")
        digest = row_hash(kept.digest, ROWS + 1, *row)
        log.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", (ROWS + 1, *row, digest))
        assert fault_of(log, kept, rows_per_page) is None


@pytest.mark.parametrize("change", ["hash = x'00'", "signature = zeroblob(64)", "at = 7", "sequence = 11"])
def test_a_head_of_the_hubs_own_that_was_edited_is_found(change: str) -> None:
    with copied_log() as log:
        log.execute(f"UPDATE audit_heads SET {change}")
        fault = fault_of(log)
        assert fault is not None and fault.kind == "head"


def test_the_first_row_that_is_wrong_is_named_before_any_head() -> None:
    with copied_log() as log:
        log.execute("UPDATE audit_heads SET signature = zeroblob(64)")
        log.execute("UPDATE audit SET subject = 'eve' WHERE sequence = 3")
        fault = fault_of(log)
        assert fault is not None and (fault.kind, fault.sequence) == ("changed", 3)


def test_what_is_no_head_is_refused_in_words() -> None:
    head = signed_head(written_log())
    assert read_head(head.line()) == head
    for line in ("", "x", head.line()[:-9], head.line().replace("lockstep", "other"), head.line() + " more"):
        with pytest.raises(UsageError, match="no head of an audit log"):
            read_head(line)


# --- a hub's own log ------------------------------------------------------------------------------------------------


async def turn_right(folder: Path, times: int) -> None:
    """Write so many rows, with no hub running."""
    async with open_rooms(folder) as hub:
        await add_account(hub)
        for turn in range(times - 1):
            await hub.accounts.allow("ada", "publish", allowed=turn % 2 == 0)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Hub]:
    """A hub that serves terminals and takes commands."""
    async with open_hub(hub_settings(folder / "hub")) as hub, serve_hub(hub), serve_admin(hub):
        yield hub


def tamper(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "hub" / "hub.db")) as database, database:
        database.execute(statement)


async def test_a_head_kept_elsewhere_finds_a_log_cut_off_and_one_rewritten_whole(tmp_path: Path) -> None:
    await turn_right(tmp_path, 6)
    async with open_rooms(tmp_path) as hub:
        kept = read_head((await hub.audit.head()).line())
        assert (await hub.audit.verify(kept)).is_whole
    tamper(tmp_path, "DELETE FROM audit WHERE sequence > 4")
    async with open_rooms(tmp_path) as hub:
        assert (await hub.audit.verify()).is_whole  # which is why a head is kept elsewhere
        cut = (await hub.audit.verify(kept)).fault
        assert cut is not None and (cut.kind, cut.sequence) == ("cut-off", 5)
    with closing(sqlite3.connect(tmp_path / "hub" / "hub.db")) as database, database:
        database.row_factory = sqlite3.Row
        database.execute("UPDATE audit SET subject = 'eve'")
        chained_anew(database, 1)
    async with open_rooms(tmp_path) as hub:
        for right in ("approve", "initiate", "receive", "publish"):
            await hub.accounts.allow("ada", right, allowed=False)
        assert (await hub.audit.verify()).is_whole
        rewritten = (await hub.audit.verify(kept)).fault
        assert rewritten is not None and rewritten.kind in ("rewritten", "cut-off")


async def test_a_head_of_another_hub_is_refused_and_holds_for_nothing(tmp_path: Path) -> None:
    await turn_right(tmp_path, 2)
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(BadDataError, match="not signed by this hub's key"):
            await hub.audit.verify(signed_head(written_log()))


async def test_a_hub_that_starts_signs_the_head_keeps_it_and_says_it_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await turn_right(tmp_path, 3)
    async with open_rooms(tmp_path) as hub:
        kept = await hub.audit.keep_head()
        assert kept is not None and kept.line() in caplog.text
        assert kept.is_signed_by(hub.hub_key.public) and kept.sequence == 3
        assert await hub.audit.keep_head() is None  # nothing came since
        await hub.accounts.allow("ada", "receive", allowed=False)
        assert await hub.audit.keep_head() is not None
        assert (await hub.audit.verify()).heads == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET subject = 'eve' WHERE sequence = 5",
        "DELETE FROM audit WHERE sequence = 5",
        "DELETE FROM audit WHERE sequence > 2",
        "UPDATE audit_heads SET signature = zeroblob(64)",
    ],
)
async def test_a_broken_log_gets_no_new_head_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    await turn_right(tmp_path, 3)
    async with open_rooms(tmp_path) as hub:
        assert await hub.audit.keep_head() is not None
        for right in ("approve", "initiate", "receive"):
            await hub.accounts.allow("ada", right, allowed=False)
    tamper(tmp_path, statement)
    async with open_rooms(tmp_path) as hub:
        assert await hub.audit.keep_head() is None
        assert "the audit log is BROKEN" in caplog.text


async def test_rows_that_come_while_the_log_is_read_for_its_head_are_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await turn_right(tmp_path, 3)
    async with open_rooms(tmp_path) as hub:
        for rows in (4, 5):  # with no head before it, and with one
            turned = hub.accounts.allow("ada", "receive", allowed=rows == 5)
            head, _ = await asyncio.gather(hub.audit.keep_head(), turned)
            assert "BROKEN" not in caplog.text
            assert head is not None and head.sequence == rows, "the row came after the end was asked for"


async def test_the_first_row_ever_is_signed_soon_and_the_last_ones_at_a_good_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit_module.LOOK_FOR_THE_FIRST_SECONDS <= 60
    monkeypatch.setattr(audit_module, "LOOK_FOR_THE_FIRST_SECONDS", 0.01)
    async with asyncio.timeout(10), serving(tmp_path) as hub:
        assert (await hub.audit.verify()).heads == 0
        await add_account(hub)
        while (await hub.audit.verify()).heads == 0:  # noqa: ASYNC110 - the hub does it in its own time
            await asyncio.sleep(0)
        for right in ("approve", "initiate"):
            await hub.accounts.allow("ada", right, allowed=False)
        assert (await hub.audit.verify()).heads == 1
    async with open_rooms(tmp_path) as hub:
        assert (await hub.audit.verify()).heads == 2
        assert await hub.audit.keep_head() is None, "the stop has signed the last row"


async def test_serving_signs_the_head_at_the_start(tmp_path: Path) -> None:
    await turn_right(tmp_path, 2)
    async with asyncio.timeout(10), serving(tmp_path) as hub:
        while (await hub.audit.verify()).heads == 0:  # noqa: ASYNC110 - the hub does it in its own time
            await asyncio.sleep(0)


async def test_the_check_of_all_a_hub_has_verifies_the_log_too(tmp_path: Path) -> None:
    await turn_right(tmp_path, 4)
    async with open_rooms(tmp_path) as hub:
        assert (await scrub(hub.store, hub.objects, hub.settings.data_folder, hub.audit)).is_sound
    tamper(tmp_path, "UPDATE audit SET actor = 'nobody' WHERE sequence = 2")
    async with open_rooms(tmp_path) as hub:
        report = await scrub(hub.store, hub.objects, hub.settings.data_folder, hub.audit)
        assert not report.is_sound
        assert [(finding.kind, finding.name) for finding in report.findings] == [("audit", "row 2")]


async def test_a_restored_hub_has_the_whole_log_and_a_head_from_after_the_backup_says_what_is_gone(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_account(hub)
        early = await hub.audit.head()
        await write_backup(hub.store, hub.objects, hub.settings.data_folder, tmp_path / "backup")
        await hub.accounts.allow("ada", "publish", allowed=True)
        late = await hub.audit.head()
    restore_backup(tmp_path / "backup", tmp_path / "other" / "hub")
    async with open_rooms(tmp_path / "other") as hub:
        assert (await hub.audit.verify(early)).is_whole
        fault = (await hub.audit.verify(late)).fault
        assert fault is not None and fault.kind == "cut-off"


async def test_a_long_log_is_shown_page_by_page_with_the_hub_running_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "ROWS_PER_PAGE", 3)
    await turn_right(tmp_path, 8)
    told = Settings(data=str(tmp_path / "hub"))

    async def read() -> list[int]:
        sequences: list[int] = []
        while page := await ask(told, "audit", {"after": sequences[-1] if sequences else 0}):
            assert len(page) <= 3
            sequences += [row["sequence"] for row in page]
        return sequences

    assert await read() == list(range(1, 9))
    async with serving(tmp_path):
        assert await read() == list(range(1, 9))
        assert (await ask(told, "audit verify", {}))["whole"]


async def test_what_somebody_wrote_into_the_log_is_shown_whatever_it_is(tmp_path: Path) -> None:
    await turn_right(tmp_path, 3)
    deep = "[" * 100_000
    for statement in (
        "UPDATE audit SET actor = x'ff00', at = 'never' WHERE sequence = 1",
        f"UPDATE audit SET detail = '{deep}' WHERE sequence = 2",
        "UPDATE audit SET detail = '[1]', hash = 'text' WHERE sequence = 3",
    ):
        tamper(tmp_path, statement)
    async with open_rooms(tmp_path) as hub:
        assert [row.sequence for row in await hub.audit.page(0)] == [1, 2, 3]
        fault = (await hub.audit.verify()).fault
        assert fault is not None and fault.sequence == 1


# --- the command ----------------------------------------------------------------------------------------------------


async def command(folder: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "audit", "--data", str(folder / "hub"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, (out + errors).decode()


async def test_the_command_shows_signs_and_verifies_and_ends_with_1_for_a_broken_log(tmp_path: Path) -> None:
    await turn_right(tmp_path, 4)
    code, shown = await command(tmp_path, "--since", "2", "--json")
    assert (code, [row["sequence"] for row in json.loads(shown)]) == (0, [3, 4])
    assert json.loads((await command(tmp_path, "--since", "4", "--json"))[1]) == []
    code, head = await command(tmp_path, "--head")
    assert code == 0 and read_head(head).sequence == 4
    assert await command(tmp_path, "--verify", "--head", head.strip()) == (
        0, "The audit log is whole: 4 rows, 0 signed heads and the one given.\n",
    )  # fmt: skip
    tamper(tmp_path, "UPDATE audit SET action = 'account.add' WHERE sequence = 3")
    code, said = await command(tmp_path, "--verify")
    assert code == 1 and "BROKEN (changed): Row 3 was edited" in said
    code, said = await command(tmp_path, "--verify", "--json")
    assert code == 1 and json.loads(said)["fault"]["sequence"] == 3
    assert (await command(tmp_path, "--verify", "--follow"))[0] == 2
    assert (await command(tmp_path, "--verify", "--head", "nonsense"))[0] == 2
    for line in (head.replace("head 4", "head 3"), signed_head(written_log()).line()):
        code, said = await command(tmp_path, "--verify", "--head", line.strip())
        assert code == 1 and "not signed by this hub's key" in said


@pytest.mark.parametrize("at", ["1e300", "-1e300", "9e999", "'yesterday'", "x'00'"])
async def test_a_row_whose_time_no_calendar_has_is_shown_all_the_same(tmp_path: Path, at: str) -> None:
    await turn_right(tmp_path, 2)
    tamper(tmp_path, f"UPDATE audit SET at = {at} WHERE sequence = 2")
    async with open_rooms(tmp_path) as hub:
        *_, row = await hub.audit.page(0)
        assert "1970-01-01T00:00:00Z" in auditing._line(to_builtins(row))
        assert not (await hub.audit.verify()).is_whole


async def test_follow_shows_what_is_there_and_then_what_comes(tmp_path: Path) -> None:
    await turn_right(tmp_path, 2)
    async with serving(tmp_path) as hub:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hub", "audit", "--data", str(tmp_path / "hub"), "--follow", "--json",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert [json.loads(await process.stdout.readline())["sequence"] for _ in range(2)] == [1, 2]
            await hub.accounts.allow("ada", "receive", allowed=False)
            row = json.loads(await process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        assert (row["sequence"], row["action"], row["detail"]) == (3, "account.deny", {"right": "receive"})


# --- kill -9 --------------------------------------------------------------------------------------------------------

MANY_ACTS = """
import asyncio, sys
from pathlib import Path
from tests.hub.rooms import open_rooms

async def main() -> None:
    async with open_rooms(Path(sys.argv[1])) as hub:
        async def turn(right):
            allowed = False
            while True:
                await hub.accounts.allow("ada", right, allowed=allowed)
                print(right, allowed, flush=True)
                allowed = not allowed
        await asyncio.gather(*(turn(right) for right in ("approve", "initiate", "publish", "receive")))

asyncio.run(main())
"""


async def test_kill_9_in_the_middle_of_many_acts_leaves_a_whole_chain_and_every_act_has_its_row(
    tmp_path: Path,
) -> None:
    await turn_right(tmp_path, 1)
    for lines in (1, 37, 90):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MANY_ACTS, str(tmp_path), stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert process.stdout is not None
        acknowledged: dict[str, bool] = {}
        async with asyncio.timeout(60):
            for _ in range(lines):
                right, allowed = (await process.stdout.readline()).decode().split()
                acknowledged[right] = allowed == "True"
            process.kill()
            for line in (await process.stdout.read()).decode().splitlines(keepends=True):
                if line.endswith("\n"):
                    right, allowed = line.split()
                    acknowledged[right] = allowed == "True"
            await process.wait()
        await check_rows_tell_the_rights(tmp_path)


async def check_rows_tell_the_rights(folder: Path) -> None:
    """What the rows say one after the other is what the account may now: no act without its row, nor the reverse."""
    async with open_rooms(folder) as hub:
        verified = await hub.audit.verify()
        assert verified.is_whole and verified.rows > 1
        held: set[str] = set()
        after = 0
        while page := await hub.audit.page(after):
            for row in page:
                if row.action == "account.add":
                    held = set(row.detail["rights"].split())
                elif row.action == "account.allow":
                    held.add(row.detail["right"])
                else:
                    held.discard(row.detail["right"])
                after = row.sequence
        (account,) = await hub.accounts.listing()
        assert set(account.rights) == held
