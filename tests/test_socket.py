"""Bad input over a real socket against a real hub: its error, a close, one log line, no effect on others."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from protocol import codec, keys, limits, messages
from protocol.device import DeviceInfo
from protocol.messages import Message
from tests.harness.fleets import until
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.installers import make_installer
from tests.harness.raw import RawTerminal, raw_terminal

Logs = pytest.LogCaptureFixture
OTHER_DIGEST = bytes([7]) * 32


@asynccontextmanager
async def quiet_hub(tmp_path: Path, caplog: Logs, lines: int = 1) -> AsyncIterator[tuple[RunningHub, RawTerminal]]:
    """A hub with a bystander logged in. Afterwards: the bystander is served still, and `lines` lines were logged."""
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as bystander:
            await bystander.enrol("ada", name="Bystander")
            await bystander.hear(messages.Devices)
            caplog.set_level(logging.INFO)
            caplog.clear()
            yield hub, bystander
            await bystander.say(messages.DevicesRequest(id=77))
            assert (await bystander.hear(messages.Devices)).re == 77
        assert not [record for record in caplog.records if record.exc_info], "a traceback was logged"
        complaints = hub_complaints(caplog)
        assert len(complaints) == lines, complaints


def hub_lines(caplog: Logs) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith(("lockstep", "asyncio"))]


def hub_complaints(caplog: Logs) -> list[str]:
    """The lines that are not the ordinary coming, going and asking."""
    return [line for line in hub_lines(caplog) if "connected" not in line and " asked for " not in line]


async def refused(terminal: RawTerminal) -> tuple[int, str, list[str]]:
    """How the hub ended the socket: close code, reason, and the codes of the errors it said before."""
    async with asyncio.timeout(10):
        code, reason, heard = await terminal.closed()
    return code, reason, [said.code for said in heard if isinstance(said, messages.Error)]


WRONG_BYTES = {
    "text": ("hello", "text-message"),
    "not msgpack": (b"\xc1\xc1", "bad-msgpack"),
    "not a map": (msgpack.packb([1, 2]), "bad-msgpack"),
    "unknown kind": (msgpack.packb({"kind": "dance"}), "unknown-kind"),
    "wrong field type": (msgpack.packb({"kind": "history", "id": "one"}), "bad-field"),
    "missing field": (msgpack.packb({"kind": "plan", "id": 1}), "bad-field"),
    "nested too deep": (msgpack.packb({"kind": "history", "id": 1, "x": [[[[[[[[[[]]]]]]]]]]}), "bad-msgpack"),
    "too many items": (msgpack.packb({"kind": "history", "id": 1, "x": [0] * 5_000}), "bad-msgpack"),
}


@pytest.mark.parametrize("name", WRONG_BYTES)
async def test_wrong_bytes_before_login_get_close_1008_and_nothing_else(
    name: str, tmp_path: Path, caplog: Logs
) -> None:
    data, _ = WRONG_BYTES[name]
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as stranger:
        await stranger.send_bytes(data)
        async with asyncio.timeout(10):
            assert await stranger.closed() == (1008, "", [])


@pytest.mark.parametrize("name", WRONG_BYTES)
async def test_wrong_bytes_after_login_get_their_error_and_close_4001(name: str, tmp_path: Path, caplog: Logs) -> None:
    data, code = WRONG_BYTES[name]
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as terminal:
        await terminal.enrol("ada")
        await terminal.send_bytes(data)
        assert await refused(terminal) == (4001, code, [code])


async def test_an_oversized_message_is_closed_with_1009_before_and_after_login(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog, lines=2) as (hub, _):
        async with raw_terminal(hub) as stranger:
            await stranger.send_bytes(bytes(limits.MESSAGE_BEFORE_LOGIN_BYTES + 1))
            assert (await refused(stranger))[0] == 1009
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada")
            await terminal.send_bytes(bytes(limits.MESSAGE_BYTES + 1))
            assert (await refused(terminal))[0] == 1009


async def test_a_message_over_the_limit_before_login_is_taken_after_it(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog, lines=0) as (hub, _), raw_terminal(hub) as terminal:
        await terminal.enrol("ada")
        padding = ["x" * 1_000] * (limits.MESSAGE_BEFORE_LOGIN_BYTES // 1_000 + 1)
        await terminal.send_bytes(msgpack.packb({"kind": "history", "id": 5, "unknown": padding}))
        assert (await terminal.hear(messages.HistoryResult)).re == 5


async def test_text_that_is_not_utf8_is_closed_by_the_library_with_one_line(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as terminal:
        await terminal.enrol("ada")
        terminal.socket.transport.write(b"\x81\x82\0\0\0\0\xff\xff")  # RFC 6455 5.2: text, masked, two bytes
        assert (await refused(terminal))[0] == 1007


EARLY: dict[str, Message] = {
    "a request": messages.History(id=1),
    "an inventory": messages.Inventory(programs=()),
    "an error": messages.Error(code="x", message="y"),
    "what only a hub says": messages.Done(re=1),
}


@pytest.mark.parametrize("name", EARLY)
async def test_what_is_out_of_order_before_login_gets_close_1008_and_nothing_else(
    name: str, tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as stranger:
        await stranger.say(EARLY[name])
        assert await refused(stranger) == (1008, "", [])


LATE: dict[str, tuple[Message, str]] = {
    "a second hello": (messages.Hello(nonce=bytes(32), versions=("lockstep.v1",)), "wrong-order"),
    "what only a hub says": (messages.Done(re=1), "wrong-order"),
    "a want for a delivery nobody offered": (
        messages.Want(delivery="d-other", runs=(messages.Run(0, 1),)), "not-offered",
    ),
    "progress on a delivery nobody offered": (
        messages.Progress(delivery="d-other", frames=1, done=1), "not-offered",
    ),
    "a chunk of an object nobody offered": (
        messages.Chunks(object=OTHER_DIGEST, first=0, count=1, data=b"x"), "not-offered",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LATE)
async def test_what_is_out_of_order_after_login_gets_its_error_and_close_4001(
    name: str, tmp_path: Path, caplog: Logs
) -> None:
    said, code = LATE[name]
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as terminal:
        await terminal.enrol("ada")
        await terminal.say(said)
        assert await refused(terminal) == (4001, code, [code])


async def test_a_want_out_of_range_gets_its_error_and_the_delivery_waits_for_the_next_connection(
    tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, bystander):
        await hub.publish(make_installer(tmp_path, "deb"))
        async with raw_terminal(hub) as first:
            await first.enrol("ada")
        async with raw_terminal(hub, like=first) as target:
            await target.login()
            sync = messages.Sync(id=1, request_key="k", program="hello", targets=(target.terminal,))
            await bystander.say(sync)
            offer = await target.hear(messages.Offer)
            await target.hear(messages.ManifestPage)
            await target.say(messages.Want(delivery=offer.delivery, runs=(messages.Run(offer.chunks - 1, 2),)))
            assert await refused(target) == (4001, "out-of-range", ["out-of-range"])
        async with raw_terminal(hub, like=first) as again:
            await again.login()
            assert (await again.hear(messages.Offer)).delivery == offer.delivery


@pytest.mark.parametrize("request_kind", [messages.SyncRequest, messages.Cancel])
async def test_a_foreign_accounts_sync_answers_exactly_as_one_that_does_not_exist(
    request_kind: type[messages.SyncRequest] | type[messages.Cancel], tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog, lines=0) as (hub, bystander):
        await hub.publish(make_installer(tmp_path, "deb"))
        await hub.add_account("eve")
        await bystander.say(messages.Sync(id=1, request_key="k", program="hello", targets=(bystander.terminal,)))
        sync = (await bystander.hear(messages.SyncAccepted)).sync
        async with raw_terminal(hub) as eve:
            await eve.enrol("eve")
            await eve.say(request_kind(id=1, sync=sync), request_kind(id=2, sync="s-2222222222"))
            foreign, missing = await eve.hear(messages.Error), await eve.hear(messages.Error)
            assert foreign.code == "unknown-sync"
            assert (foreign.code, foreign.hint, foreign.near) == (missing.code, missing.hint, missing.near)
            assert foreign.message.replace(sync, "ID") == missing.message.replace("s-2222222222", "ID")
            await eve.say(messages.History(id=3))
            assert (await eve.hear(messages.HistoryResult)).syncs == ()


async def test_a_foreign_accounts_terminal_and_delivery_answer_as_ones_that_do_not_exist(
    tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog, lines=0) as (hub, bystander):
        await hub.publish(make_installer(tmp_path, "deb"))
        await hub.add_account("eve")
        await bystander.say(messages.Sync(id=1, request_key="k", program="hello", targets=(bystander.terminal,)))
        delivery = (await bystander.hear(messages.SyncAccepted)).targets[0].delivery
        async with raw_terminal(hub) as eve:
            await eve.enrol("eve")
            for number, target in ((1, bystander.terminal), (2, "t-2222222222")):
                await eve.say(messages.Plan(id=number, program="hello", targets=(target,)))
                error = await eve.hear(messages.Error)
                assert (error.re, error.code, error.near) == (number, "unknown-terminal", ())
            for name in (delivery, "d-2222222222"):
                await eve.say(messages.State(delivery=name, state="failed"))
                assert await eve.hear(messages.Noted) == messages.Noted(of=name, state="failed")
        await bystander.say(messages.SyncRequest(id=9, sync=(await history(bystander))))
        [row] = (await bystander.hear(messages.SyncResult)).targets
        assert row.state == "queued"


async def history(terminal: RawTerminal) -> str:
    await terminal.say(messages.History(id=8))
    return (await terminal.hear(messages.HistoryResult)).syncs[0].sync


async def test_a_replayed_login_is_refused(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _):
        async with raw_terminal(hub) as first:
            await first.enrol("ada")
        async with raw_terminal(hub, like=first) as victim:
            await victim.hello()
            captured = victim.login_message()
        async with raw_terminal(hub) as thief:
            thief.nonce = victim.nonce
            await thief.hello()
            await thief.say(captured)
            assert await refused(thief) == (1008, "unknown-terminal", ["unknown-terminal"])


@pytest.mark.parametrize(("account", "password"), [("ada", "wrong horse battery"), ("nobody", "correct horse battery")])
async def test_a_wrong_password_and_an_unknown_account_get_the_same_answer(
    account: str, password: str, tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog, lines=2) as (hub, _), raw_terminal(hub) as stranger:
        await stranger.hello()
        await stranger.say(stranger.enrol_message(account, password=password))
        code, _, heard = await stranger.closed()
        assert code == 1008
        assert heard == [
            messages.Error(
                code="not-authorised", message="The account or the password is wrong.", hint="Check both and try again."
            )
        ]


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\x01"])
async def test_half_a_handshake_is_one_line_and_no_traceback(garbage: bytes, tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _):
        host, _, port = hub.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        await until(lambda: bool(hub_complaints(caplog)), within_seconds=10)


async def test_a_browsers_page_may_not_connect(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _):
        with pytest.raises(InvalidStatus) as caught:
            await connect(hub.url, origin="http://evil.example", subprotocols=[Subprotocol("lockstep.v1")], proxy=None)  # type: ignore[arg-type]
        assert caught.value.response.status_code == 403


async def test_too_many_sockets_before_login_get_503_and_a_time_to_come_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path, sockets_before_login=2) as hub, raw_terminal(hub), raw_terminal(hub):
        with pytest.raises(InvalidStatus) as caught:
            await connect(hub.url, subprotocols=[Subprotocol("lockstep.v1")], proxy=None)
        assert caught.value.response.status_code == 503
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 5


async def test_the_count_of_sockets_before_login_returns_to_zero_however_they_end(tmp_path: Path, caplog: Logs) -> None:
    caplog.set_level(logging.INFO)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with raw_terminal(hub) as leaves_early:
            await leaves_early.hello()
        async with raw_terminal(hub) as is_refused:
            await is_refused.send_bytes(b"\xc1")
            await is_refused.closed()
        async with raw_terminal(hub) as logs_in:
            await logs_in.enrol("ada")
        async with raw_terminal(hub) as breaks_while_it_is_counted:
            await breaks_while_it_is_counted.hello()
            await breaks_while_it_is_counted.say(breaks_while_it_is_counted.enrol_message("ada"))
            breaks_while_it_is_counted.socket.transport.abort()
        services = hub.server._services
        await until(lambda: not services.sockets, within_seconds=10)
        assert hub.server.reception.count == 0


async def test_a_newer_login_replaces_the_older_socket(tmp_path: Path, caplog: Logs) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as older:
        await older.enrol("ada")
        async with raw_terminal(hub, like=older) as newer:
            await newer.login()
            assert (await refused(older))[0] == 4000
            await newer.say(messages.History(id=4))
            assert (await newer.hear(messages.HistoryResult)).re == 4


async def test_terminals_are_told_1012_when_the_hub_stops(tmp_path: Path) -> None:
    hub = RunningHub(tmp_path / "hub")
    await hub.start()
    await hub.add_account("ada")
    async with raw_terminal(hub) as terminal, raw_terminal(hub) as stranger:
        await terminal.enrol("ada")
        await stranger.hello()
        await hub.stop()
        assert (await terminal.closed())[:2] == (1012, "the hub is stopping")
        assert (await stranger.closed())[0] == 1012


async def test_a_truncated_pack_is_said_in_words_tried_again_later_and_the_next_is_served(
    tmp_path: Path, caplog: Logs
) -> None:
    caplog.set_level(logging.INFO)
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        damaged = await hub.publish(make_installer(tmp_path, "deb", "damaged"))
        await hub.publish(make_installer(tmp_path, "deb", "sound"))
        async with raw_terminal(hub) as asks, raw_terminal(hub) as first:
            await asks.enrol("ada", name="Asks")
            await first.enrol("ada", name="Target")
            async with raw_terminal(hub, like=first) as target:
                await target.login()
                await asks.say(messages.Sync(id=1, request_key="1", program="damaged", targets=(target.terminal,)))
                offer = await target.hear(messages.Offer)
                [pack] = (hub.folder / "objects").rglob(f"{damaged.digest}.pack")
                os.truncate(pack, 10)
                await target.say(messages.Want(delivery=offer.delivery, runs=(messages.Run(0, offer.chunks),)))
                assert (await target.hear(messages.Withdraw)).delivery == offer.delivery
                while (row := (await asks.hear(messages.SyncUpdate)).targets[0]).reason != "damaged-object":
                    pass
                assert row.state == "queued" and "Try 2 of 5" in row.detail
                await asks.say(messages.Sync(id=2, request_key="2", program="sound", targets=(target.terminal,)))
                assert (await target.hear(messages.Offer)).installer.program == "sound"
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_initiator_of_many_open_syncs_can_log_in_and_learns_of_all_of_them(tmp_path: Path) -> None:
    """Each open sync is told at login; all at once they would overflow the queue and cut the socket for ever."""
    many = 3 * limits.OUTBOUND_CONTROL_MESSAGES // 2
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        await hub.publish(make_installer(tmp_path, "deb"))
        async with raw_terminal(hub) as first, raw_terminal(hub) as absent:
            await first.enrol("ada", name="Asks")
            await absent.enrol("ada", name="Absent")
            for number in range(1, many + 1):
                sync = messages.Sync(id=number, request_key=str(number), program="hello", targets=(absent.terminal,))
                await first.say(sync)
                await first.hear(messages.SyncAccepted)
        async with raw_terminal(hub, like=first) as again, asyncio.timeout(30):
            await again.login(receives=False)
            told: set[str] = set()
            while len(told) < many:
                told.add((await again.hear(messages.SyncUpdate)).sync)


def test_the_longest_login_fits_what_may_be_sent_before_it() -> None:
    text = "ü" * limits.NAME_CHARACTERS
    device = DeviceInfo(model=text, model_code=text, os_version=text, features=(text,) * 16)
    enrol = messages.Enrol(
        account=text, password="ü" * limits.TEXT_CHARACTERS, name=text, device=device, device_key=bytes(32),
        sealing_key=bytes(32), host="h" * 255, port=65_535, signature=keys.SigningKey.generate().sign(b""),
    )  # fmt: skip
    assert len(codec.encode(enrol)) <= limits.MESSAGE_BEFORE_LOGIN_BYTES


async def test_a_terminal_with_too_many_messages_waiting_is_cut_and_costs_nobody_else(
    tmp_path: Path, caplog: Logs
) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as slow:
        await slow.enrol("ada")
        await slow.hear(messages.Devices)
        socket = hub.socket_of(slow.terminal)
        for _ in range(limits.OUTBOUND_CONTROL_MESSAGES):
            socket.queue(codec.encode(messages.Done(re=1)))
        assert socket._closing is None, "the queue is full and not over"
        socket.queue(codec.encode(messages.Done(re=1)))
        assert (await refused(slow))[0] == 4002


async def test_a_terminal_that_stops_reading_is_cut_when_a_send_does_not_end(
    tmp_path: Path, caplog: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with quiet_hub(tmp_path, caplog) as (hub, _), raw_terminal(hub) as frozen:
        await frozen.enrol("ada")
        await frozen.hear(messages.Devices)
        monkeypatch.setattr(limits, "SEND_SECONDS", 0.3)
        frozen.socket.transport.pause_reading()
        socket = hub.socket_of(frozen.terminal)
        for _ in range(limits.OUTBOUND_CONTROL_MESSAGES):  # 16 MiB, more than the kernel's buffers take
            socket.queue(bytes(limits.FRAME_BYTES))
        await until(lambda: socket.number not in hub.server._services.sockets, within_seconds=20)
        assert any("took nothing for 0.3 s" in line for line in hub_lines(caplog))
        frozen.socket.transport.abort()
