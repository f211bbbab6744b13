"""Every limit is tried at the limit, just past it and ten times past it; the table says by which tests.

What `limit_cases.py` tries is tried here, in the room that keeps the limit; what needs a real socket follows below it;
and what is tested elsewhere is named in the table. A limit without an entry fails, and so does an entry that names no
test.
"""

import asyncio
import importlib
import inspect
import io
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from hub import guesses
from hub.config import Settings
from hub.objects import Objects
from protocol import codec, limits, messages
from protocol.errors import LockstepError
from scanner import worker
from terminal.link import Link
from tests.harness.fleets import until
from tests.harness.hubs import running_hub
from tests.harness.raw import raw_terminal
from tests.hub.rooms import add_account, add_terminal, open_rooms, small_disk
from tests.safety import bombs, ledger
from tests.safety.limit_cases import CASES, message_of

HERE = "tests.safety.test_limits"
AT_PAST_AND_TEN_TIMES = f"{HERE}::test_a_limit_holds_at_it_just_past_it_and_ten_times_past_it"
# What is ten times past a limit may be past a wider one, too.
WIDER = frozenset({"too-large", "bad-msgpack"})

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "HEARD_BEFORE_LOGIN_BYTES": (f"{HERE}::test_a_stranger_may_say_so_much_and_no_more",),
    "RULES_BYTES": (
        "tests.terminal.test_session::test_a_rule_set_that_is_too_large_is_refused_before_any_of_it_comes",
    ),
    "CHUNK_MINIMUM_BYTES": ("tests.protocol.test_chunks::test_cuts_are_those_the_document_describes",),
    "CHUNK_AVERAGE_BYTES": ("tests.protocol.test_chunks::test_cuts_are_those_the_document_describes",),
    "SMALL_OBJECT_BYTES": ("tests.protocol.test_chunks::test_chunk_sizes_double_with_the_object_at_most_twice",),
    "CHUNK_SIZE_DOUBLINGS": ("tests.protocol.test_chunks::test_chunk_sizes_double_with_the_object_at_most_twice",),
    "MANIFEST_ENTRY_BYTES": ("tests.protocol.test_chunks::test_a_manifest_is_taken_at_its_limit_and_refused_past_it",),
    "FRAME_FIRST_BYTES": ("tests.protocol.test_transfer::test_the_size_of_frames_keeps_its_bounds_on_any_link",),
    "FRAME_SMALLEST_BYTES": ("tests.protocol.test_transfer::test_the_size_of_frames_keeps_its_bounds_on_any_link",),
    "FRAME_SECONDS": (
        "tests.protocol.test_transfer::test_frames_for_a_slow_link_take_it_at_most_a_quarter_of_a_second_and_fill_it",
    ),
    "WINDOW_FIRST_FRAMES": ("tests.protocol.test_transfer::test_the_window_stays_at_its_first_size_on_a_slow_link",),
    "WINDOW_GROWS_BELOW_SECONDS": (
        "tests.protocol.test_transfer::test_an_acknowledgement_exactly_at_the_limit_shrinks_and_one_just_below_grows",
    ),
    "OUTBOUND_CONTROL_MESSAGES": (
        f"{HERE}::test_so_many_messages_wait_for_one_terminal_and_past_that_it_is_cut",
        "tests.test_socket::test_a_terminal_with_too_many_messages_waiting_is_cut_and_costs_nobody_else",
        "tests.terminal.test_connection::test_a_peer_that_takes_nothing_is_cut_off_when_the_queue_is_full",
    ),
    "INBOUND_MESSAGES": (f"{HERE}::test_of_what_comes_while_the_hub_is_busy_four_messages_are_taken_in",),
    "REQUESTS_UNDER_WAY": (f"{HERE}::test_a_connection_has_sixteen_requests_under_way_and_the_next_wait",),
    "SEND_SECONDS": (
        "tests.test_socket::test_a_terminal_that_stops_reading_is_cut_when_a_send_does_not_end",
        "tests.test_slow_peers::test_a_terminal_that_lets_frames_lie_is_cut_and_another_is_served_meanwhile",
    ),
    "DEVICE_CHANGES_EVERY_SECONDS": (f"{HERE}::test_however_often_a_device_changes_it_is_told_four_times_a_second",),
    "SYNC_UPDATES_EVERY_SECONDS": (
        "tests.hub.test_session::test_an_initiator_is_told_at_most_twice_a_second_however_often_something_changes",
    ),
    "UPLOAD_IDLE_SECONDS": (
        "tests.hub.test_upload_session"
        "::test_only_a_terminal_that_has_something_to_send_has_a_deadline_and_each_part_sets_it_anew",
    ),
    "RECONNECT_FIRST_SECONDS": (
        "tests.terminal.test_connection::test_the_wait_before_the_next_try_suits_why_the_last_one_failed",
    ),
    "RECONNECT_LARGEST_SECONDS": (
        "tests.terminal.test_connection::test_the_wait_before_the_next_try_suits_why_the_last_one_failed",
    ),
    "RESTART_SPREAD_SECONDS": (
        "tests.terminal.test_connection::test_the_wait_before_the_next_try_suits_why_the_last_one_failed",
    ),
    "RETRY_AFTER_SMALLEST_SECONDS": (
        "tests.test_socket::test_too_many_sockets_before_login_get_503_and_a_time_to_come_again",
    ),
    "RETRY_AFTER_LARGEST_SECONDS": (
        "tests.terminal.test_connection"
        "::test_a_hub_that_is_busy_says_how_long_to_wait_and_is_believed_for_a_minute_at_most",
    ),
    "disk_reserve_bytes": (
        f"{HERE}::test_what_is_stored_never_takes_the_reserve",
        "tests.hub.test_objects::test_a_file_that_would_use_the_disks_reserve_is_refused_and_leaves_nothing",
    ),
    "terminals_per_account": (
        "tests.hub.test_accounts::test_an_account_takes_as_many_terminals_as_it_may_and_no_more",
        f"{HERE}::test_an_account_has_so_many_terminals_however_many_ask",
    ),
    "sockets_before_login": (
        "tests.test_socket::test_too_many_sockets_before_login_get_503_and_a_time_to_come_again",
        f"{HERE}::test_however_many_come_no_more_than_the_room_before_login_holds_are_let_in",
    ),
    "delivery_seconds": (
        "tests.hub.test_deliveries::test_a_delivery_that_does_not_go_on_ends_at_its_deadline_and_not_before",
        "tests.hub.test_deliveries::test_a_delivery_as_a_whole_has_its_days_however_often_it_is_tried",
    ),
    "transfers_at_once": (
        "tests.test_slow_peers::test_more_transfers_than_may_run_at_once_wait_queued_and_come_in_turn",
    ),
    "bytes_in_flight": (
        "tests.hub.test_fairness::test_whatever_comes_and_goes_no_room_is_lost_or_given_twice_and_everyone_is_served",
    ),
    "bandwidth_bytes_per_second": (
        "tests.test_slow_peers::test_a_bandwidth_limit_holds_and_never_holds_an_answer_back",
    ),
    "terminal_bandwidth_bytes_per_second": (
        "tests.test_slow_peers::test_a_bandwidth_limit_holds_and_never_holds_an_answer_back",
    ),
    "live sockets of a terminal": (
        "tests.test_socket::test_a_newer_login_replaces_the_older_socket",
        f"{HERE}::test_however_often_a_terminal_logs_in_it_has_one_live_socket",
    ),
    "installations of a terminal at once": ("tests.terminal.test_session::test_no_more_than_sixteen_install_at_once",),
    "uploads of an account": (
        "tests.hub.test_uploads::test_an_account_has_so_many_uploads_at_once_and_the_same_file_once",
    ),
    "answers that nobody reads": ("tests.safety.test_bombs::test_answers_that_nobody_reads_do_not_pile_up",),
    "entries of an archive": (
        "tests.hub.inspectors.test_zips::test_a_zip_directory_with_more_entries_than_the_limit_is_refused",
        "tests.hub.inspectors.test_zips::test_a_zip_directory_larger_than_the_limit_is_refused_unread",
    ),
    "unpacked bytes of an archive": (
        "tests.hub.inspectors.test_deb::test_a_control_file_larger_than_the_limit_is_refused",
        "tests.hub.inspectors.test_deb::test_a_zstd_bomb_is_given_up_a_step_after_the_limit",
        "tests.hub.inspectors.test_deb::test_a_zstd_window_larger_than_the_memory_allowed_is_refused",
    ),
    "paths of an archive": (
        "tests.hub.inspectors.test_zips::test_a_path_that_leads_out_of_the_folder_it_is_unpacked_to_is_refused",
    ),
    "files of an archive that is scanned": (
        f"{HERE}::test_a_scan_looks_at_so_many_files_and_says_that_there_are_more",
    ),
    "bytes of an archive that is scanned": (
        f"{HERE}::test_a_scan_looks_at_so_many_bytes_and_says_that_there_are_more",
    ),
    "bytes of a rule set on the hub": (
        "tests.scanner.test_yara::test_rules_of_exactly_the_limit_are_taken_and_one_byte_more_is_not",
    ),
    "findings of a posture report": (
        "tests.terminal.test_posture::test_a_report_holds_as_many_findings_as_fit_and_counts_the_rest",
    ),
    "budget of a posture scan": ("tests.terminal.test_posture::test_past_its_budget_a_scan_is_not_complete",),
    "uses of a join key": (
        "tests.hub.test_joinkeys::test_a_key_makes_as_many_devices_as_it_has_uses_each_with_its_tags",
    ),
    "guesses over real sockets": (f"{HERE}::test_after_five_wrong_passwords_no_more_are_evaluated_and_devices_log_in",),
    "seconds of a reader": (
        "tests.hub.test_inspection::test_an_endless_loop_is_a_refusal_after_two_seconds_of_processor_time",
        "tests.hub.test_inspection::test_a_reader_that_waits_for_ever_is_a_refusal_after_the_time_allowed",
    ),
}
UNITS = re.compile(r"[A-Z][A-Z_]{3,}")
# Settings that are no limits: names, files, switches.
NO_LIMITS = re.compile(r"data|listen|names|insecure_lan|tls_.*|trusted_proxies|oidc_.*|quiet_hours|scan_.*|posture_.*")


def names_of_limits() -> set[str]:
    """Every limit the product has a name for: of the wire, of the codec, of the settings."""
    wire = {name for name, value in vars(limits).items() if UNITS.fullmatch(name) and not isinstance(value, type)}
    settings = {name for name in Settings.__struct_fields__ if not NO_LIMITS.fullmatch(name)}
    return wire - {"GIB"} | {"ITEMS_IN_ONE_MESSAGE"} | settings


def test_every_limit_has_its_cases() -> None:
    assert names_of_limits() - CASES.keys() - ELSEWHERE.keys() == set()
    ledger.count("limits", "limits", len(CASES.keys() | ELSEWHERE.keys()))


def test_a_limit_nobody_tries_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NEW_THINGS_BYTES", 1, raising=False)
    assert names_of_limits() - CASES.keys() - ELSEWHERE.keys() == {"NEW_THINGS_BYTES"}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_tests_that_the_table_names_are_there(name: str) -> None:
    for one in ELSEWHERE[name]:
        module, _, function = one.partition("::")
        assert inspect.isfunction(getattr(importlib.import_module(module), function, None)), one
        assert function.startswith("test_")
        ledger.count("limits", "cases")


def refusal(name: str, much: float) -> str:
    """The code with which so much is refused."""
    with pytest.raises(LockstepError) as caught:
        CASES[name].attempt(much)
    return caught.value.code


@pytest.mark.parametrize("name", CASES)
def test_a_limit_holds_at_it_just_past_it_and_ten_times_past_it(name: str) -> None:
    case = CASES[name]
    case.attempt(case.limit)
    assert refusal(name, case.limit + case.step) == case.code
    assert refusal(name, case.limit * 10) in {case.code} | WIDER
    ledger.count("limits", "cases", 3)


# --- scans --------------------------------------------------------------------------------------------------------


def scanned(data: bytes) -> tuple[str, ...]:
    """What a scan says it has not looked at."""
    rules = worker._compile(b"rule nothing { condition: false }").content
    return worker._scan(io.BytesIO(data), rules, 1).skipped


def zip_of(count: int, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(count):
            archive.writestr(f"f{number}", content)
    return buffer.getvalue()


@pytest.mark.parametrize(("count", "is_past"), [(19, False), (20, True), (200, True)])
def test_a_scan_looks_at_so_many_files_and_says_that_there_are_more(
    count: int, is_past: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "FILES", 20)  # the archive itself is one
    assert ["beyond 20 files" in said for said in scanned(zip_of(count))] == [True] * is_past
    ledger.count("limits", "cases")


@pytest.mark.parametrize(("size", "is_past"), [(1_000_000, False), (1_000_001, True), (10_000_000, True)])
def test_a_scan_looks_at_so_many_bytes_and_says_that_there_are_more(
    size: int, is_past: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zip_of(1, bytes(size))
    monkeypatch.setattr(worker, "BYTES", 1_000_000 + len(bomb))  # the archive itself is scanned, too
    assert ["beyond" in said for said in scanned(bomb)] == [True] * is_past
    ledger.count("limits", "cases")


# --- over real sockets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logged_in", [False, True], ids=["before login", "after login"])
async def test_a_message_is_taken_at_its_limit_and_ends_the_socket_past_it(logged_in: bool, tmp_path: Path) -> None:
    limit = limits.MESSAGE_BYTES if logged_in else limits.MESSAGE_BEFORE_LOGIN_BYTES
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as enrolled:
            await enrolled.enrol("ada")
        for size, closed in ((limit, 1008), (limit + 1, 1009), (limit * 10, 1009)):
            async with raw_terminal(hub, like=enrolled) as raw, asyncio.timeout(10):
                if logged_in:
                    await raw.login(receives=False)
                # Of what is too large the head is enough, and the end of it nobody would read.
                data = bombs.frame(message_of(size))
                raw.socket.transport.write(data if size == limit else data[:1_000])
                if logged_in and size == limit:
                    await raw.hear(messages.HistoryResult)
                else:  # before login a history is refused, but read
                    assert (await raw.closed())[0] == closed
            ledger.count("limits", "cases")


async def test_a_stranger_may_say_so_much_and_no_more(tmp_path: Path) -> None:
    pong = bombs.frame(bytes(122), bombs.PONG)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        for much, is_let_in in ((0.9, True), (1.0, False), (10.0, False)):
            async with raw_terminal(hub) as raw, asyncio.timeout(10):
                raw.socket.transport.write(pong * int(much * limits.HEARD_BEFORE_LOGIN_BYTES / len(pong)))
                if is_let_in:
                    await raw.enrol("ada")
                    raw.socket.transport.write(pong * int(10 * limits.HEARD_BEFORE_LOGIN_BYTES / len(pong)))
                    await raw.say(messages.History(id=1))
                    await raw.hear(messages.HistoryResult)
                else:
                    with pytest.raises(ConnectionClosed):
                        await raw.enrol("ada")
            ledger.count("limits", "cases")


async def test_of_what_comes_while_the_hub_is_busy_four_messages_are_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_hub(tmp_path) as hub, raw_terminal(hub) as raw:
        await hub.add_account("ada")
        await raw.enrol("ada")
        free, decoded = asyncio.Event(), []
        answer = hub.server._services.requests.answer

        async def busy(*arguments: object) -> object:
            await free.wait()
            return await answer(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(hub.server._services.requests, "answer", busy)
        decode = codec.decode

        def counted(data: bytes | str, **options: int) -> messages.AnyMessage:
            decoded.append(data)
            return decode(data, **options)

        monkeypatch.setattr(codec, "decode", counted)
        many = 10 * limits.INBOUND_MESSAGES
        for number in range(1, many + 1):
            await raw.socket.send(msgpack.packb({"kind": "history", "id": number}))
        await until(lambda: len(decoded) >= limits.INBOUND_MESSAGES)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(decoded) <= limits.INBOUND_MESSAGES + 1, "one is being answered"
        free.set()
        answers = [(await raw.hear(messages.HistoryResult)).re for _ in range(many)]
        assert answers == list(range(1, many + 1))


async def test_however_many_come_no_more_than_the_room_before_login_holds_are_let_in(tmp_path: Path) -> None:
    async with running_hub(tmp_path, sockets_before_login=4) as hub:
        stack = [raw_terminal(hub) for _ in range(40)]
        outcomes = await asyncio.gather(*(one.__aenter__() for one in stack), return_exceptions=True)
        let_in = [one for one in outcomes if not isinstance(one, BaseException)]
        assert len(let_in) == 4
        refused = [one for one in outcomes if isinstance(one, BaseException)]
        assert all(isinstance(one, (InvalidHandshake, OSError)) for one in refused), refused
        for context, one in zip(stack, outcomes, strict=True):
            if not isinstance(one, BaseException):
                await context.__aexit__(None, None, None)


async def test_however_often_a_terminal_logs_in_it_has_one_live_socket(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as first:
            await first.enrol("ada")
        stack = [raw_terminal(hub, like=first) for _ in range(10)]
        logins = [await one.__aenter__() for one in stack]
        for one in logins:
            await one.login(receives=False)
        async with asyncio.timeout(10):
            assert {(await one.closed())[0] for one in logins[:-1]} == {4000}
        await until(lambda: len(hub.server._services.sockets) == 1)
        for context in stack:
            await context.__aexit__(None, None, None)


async def test_however_often_a_device_changes_it_is_told_four_times_a_second(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub, raw_terminal(hub) as watches, raw_terminal(hub) as changes:
        await hub.add_account("ada")
        await watches.enrol("ada", name="Watches")
        await changes.enrol("ada", name="Changes")
        await watches.hear(messages.Devices)
        began = asyncio.get_running_loop().time()
        for number in range(1, 61):
            await changes.say(messages.DeviceUpdate(id=number, name=f"Changes {number}"))
            await changes.hear(messages.Done)
        told = 0
        async with asyncio.timeout(10):
            while True:
                told += 1
                rows = (await watches.hear(messages.DeviceChanges)).changed
                if any(row.name == "Changes 60" for row in rows):
                    break
        seconds = asyncio.get_running_loop().time() - began
        # One more at the beginning of the time and one at its end; the coming of the device may be the first.
        assert told <= seconds / limits.DEVICE_CHANGES_EVERY_SECONDS + 2


async def test_a_connection_has_sixteen_requests_under_way_and_the_next_wait() -> None:
    said: list[messages.Message] = []
    link = Link(cast(Any, None), "the hub", ask=said.append)
    waiting = [
        asyncio.ensure_future(link.request(messages.History(id=1))) for _ in range(10 * limits.REQUESTS_UNDER_WAY)
    ]
    for answered in range(len(waiting)):
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(said) == min(answered + limits.REQUESTS_UNDER_WAY, len(waiting))
        link.deliver(messages.HistoryResult(re=said[answered].id, syncs=()))  # type: ignore[attr-defined]
    await asyncio.gather(*waiting)


async def test_after_five_wrong_passwords_no_more_are_evaluated_and_devices_log_in(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub, asyncio.timeout(30):
        await hub.add_account("ada")
        async with raw_terminal(hub) as enrolled:
            await enrolled.enrol("ada")
        codes = []
        for number in range(10 * guesses.ACCOUNT_AT_ONCE):
            async with raw_terminal(hub) as guesser:
                await guesser.hello()
                await guesser.say(guesser.enrol_message("ada", password=f"guess number {number}"))
                codes.append((await guesser.hear(messages.Error)).code)
        evaluated = guesses.ACCOUNT_AT_ONCE
        assert codes == ["not-authorised"] * evaluated + ["rate-limited"] * (len(codes) - evaluated)
        async with raw_terminal(hub, like=enrolled) as device:
            await device.login()


async def test_an_account_has_so_many_terminals_however_many_ask(tmp_path: Path) -> None:
    async with open_rooms(tmp_path, terminals_per_account=3) as hub:
        account = await add_account(hub)
        codes = []
        for number in range(30):
            try:
                await add_terminal(hub, account, f"PC {number}")
            except LockstepError as error:
                codes.append(error.code)
        assert codes == ["account-full"] * 27
    ledger.count("limits", "cases", 3)


@pytest.mark.parametrize(("many", "is_cut"), [(64, False), (65, True), (640, True)])
async def test_so_many_messages_wait_for_one_terminal_and_past_that_it_is_cut(
    many: int, is_cut: bool, tmp_path: Path
) -> None:
    assert limits.OUTBOUND_CONTROL_MESSAGES == 64
    async with running_hub(tmp_path) as hub, raw_terminal(hub) as slow, asyncio.timeout(20):
        await hub.add_account("ada")
        await slow.enrol("ada")
        await slow.hear(messages.Devices)
        socket = hub.socket_of(slow.terminal)
        await until(lambda: not socket._outbox)
        for _ in range(many):
            socket.queue(codec.encode(messages.Done(re=1)))
        assert (socket._closing is not None) is is_cut
        if is_cut:
            assert (await slow.closed())[0] == 4002
        else:
            for _ in range(many):
                await slow.hear(messages.Done)
    ledger.count("limits", "cases")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(("times", "is_refused"), [(0.9, False), (1.1, True), (10.0, True)])
def test_what_is_stored_never_takes_the_reserve(times: float, is_refused: bool, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24 * limits.MIB) as folder:
        objects = Objects(folder / "objects", reserve_bytes=16 * limits.MIB, store_bytes=limits.GIB)
        left = shutil.disk_usage(folder).free - 16 * limits.MIB
        try:
            objects.check_room("a.deb", int(left * times))
            code = ""
        except LockstepError as error:
            code = error.code
        assert code == ("disk-full" if is_refused else "")
    ledger.count("limits", "cases")
