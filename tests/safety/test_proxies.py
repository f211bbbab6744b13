"""Behind a proxy: whose word counts on who asks, and that nobody but the proxy reaches a hub without TLS."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from hub.config import load_settings
from hub.proxies import TrustedProxies, came_in_the_clear
from protocol import messages
from protocol.errors import UsageError
from tests.harness.hubs import RunningHub, running_hub
from tests.harness.raw import RawTerminal

TRUSTED = TrustedProxies(("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48"))
PROXY = "127.0.0.2"


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["6.6.6.6", "203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", ["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["garbage"], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6, garbage, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["6.6.6.6, 999.1.1.1"], "127.0.0.1"),
        ("127.0.0.1", ["\x00\xff, ,,"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9:52114"], "203.0.113.9"),
        ("127.0.0.1", ["2001:db8:2::7"], "2001:db8:2::7"),
        ("127.0.0.1", ["[2001:db8:2::7]:443, 2001:db8:1::1"], "2001:db8:2::7"),
        ("127.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("2001:db8:1::5", ["2001:db8:2::7, ::ffff:10.0.0.7"], "2001:db8:2::7"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxys(
    peer: str, forwarded_for: list[str], client: str
) -> None:
    assert TRUSTED.client_of(peer, forwarded_for) == client


def test_a_long_chain_of_hops_is_followed_to_its_end() -> None:
    hops = ", ".join(f"10.0.{number // 256}.{number % 256}" for number in range(500))
    assert TRUSTED.client_of("127.0.0.1", [f"203.0.113.9, {hops}"]) == "203.0.113.9"


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "10.255.0.1", "2001:db8:1:ffff::1"])
def test_a_proxy_is_trusted_however_its_address_is_written(address: str) -> None:
    assert TRUSTED.trusts(address)


@pytest.mark.parametrize("address", ["127.0.0.2", "11.0.0.1", "2001:db8:2::1", "::1", "garbage", "", "?"])
def test_nobody_else_is(address: str) -> None:
    assert not TRUSTED.trusts(address)


@pytest.mark.parametrize(
    ("said", "in_the_clear"),
    [([], False), (["https"], False), (["WSS"], False), (["http"], True), (["https, http"], True),
     (["http, https"], False), (["http", "https"], False), (["gopher"], True)],
)  # fmt: skip
def test_the_nearest_proxys_word_on_the_scheme_counts(said: list[str], in_the_clear: bool) -> None:
    assert came_in_the_clear(said) is in_the_clear


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", ""])
def test_what_names_no_proxy_is_refused_when_the_hub_starts(text: str) -> None:
    with pytest.raises(UsageError, match="trusted_proxies"):
        load_settings(None, {"trusted_proxies": (text,)}, {})


def test_a_hub_behind_a_trusted_proxy_may_listen_off_this_machine_without_tls() -> None:
    environment = {"LOCKSTEP_HUB_TRUSTED_PROXIES": "10.0.0.7,10.1.0.0/16", "LOCKSTEP_HUB_LISTEN": "0.0.0.0:8765"}
    assert load_settings(None, {}, environment).trusted_proxies == ("10.0.0.7", "10.1.0.0/16")


# --- a real hub ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def asked(
    hub: RunningHub, headers: Mapping[str, str] | list[tuple[str, str]], *, source: str = PROXY
) -> AsyncIterator[ClientConnection]:
    async with connect(
        hub.url, subprotocols=[Subprotocol("lockstep.v1")], compression=None, ping_interval=None, proxy=None,
        additional_headers=headers, local_addr=(source, 0),
    ) as socket:  # fmt: skip
        yield socket


async def address_shown(hub: RunningHub, socket: ClientConnection) -> str:
    """Enrol; return the address the hub has of this terminal."""
    host, _, port = hub.url.removeprefix("ws://").rpartition(":")
    terminal = RawTerminal(socket, host, int(port))
    await terminal.enrol("ada")
    return hub.socket_of(terminal.terminal).address


async def refusal(hub: RunningHub, headers: Mapping[str, str], *, source: str = PROXY) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with asked(hub, headers, source=source):
            pass
    return caught.value.response.status_code, (caught.value.response.body or b"").decode()


async def test_behind_the_proxy_the_client_has_the_address_the_proxy_gives_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,)) as hub:
        await hub.add_account("ada")
        headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9", "X-Forwarded-Proto": "https"}
        async with asked(hub, headers) as socket:
            assert await address_shown(hub, socket) == "203.0.113.9"


async def test_a_copied_key_raises_the_alarm_behind_a_proxy_too(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,)) as hub, AsyncExitStack() as stack:
        await hub.add_account("ada")
        host, _, port = hub.url.removeprefix("ws://").rpartition(":")
        device: RawTerminal | None = None
        for client, run in (("203.0.113.9", b"1"), ("198.51.100.7", b"2"), ("203.0.113.9", b"1")):
            headers = {"X-Forwarded-For": client, "X-Forwarded-Proto": "https"}
            if device is None:
                device = RawTerminal(await stack.enter_async_context(asked(hub, headers)), host, int(port))
                await device.enrol("ada")
            copy = RawTerminal(await stack.enter_async_context(asked(hub, headers)), host, int(port))
            copy.signing_key, copy.terminal = device.signing_key, device.terminal
            await copy.hello()
            await copy.say(structs.replace(copy.login_message(), run=run * 16))
            await copy.hear(messages.Welcome)
        await copy.say(messages.History(id=1))
        await copy.hear(messages.HistoryResult)  # by then the alarm is raised
        assert [one.standing for one in await hub.hub.revocation.listing("ada")] == ["cloned"]


async def test_a_header_that_comes_twice_counts_as_one_list(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,)) as hub:
        await hub.add_account("ada")
        async with asked(hub, [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "203.0.113.9")]) as socket:
            assert await address_shown(hub, socket) == "203.0.113.9"


async def test_without_trusted_proxies_what_anybody_says_of_an_address_counts_nothing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        async with asked(hub, {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}) as socket:
            assert (await address_shown(hub, socket)).startswith(f"{PROXY}:")


async def test_others_than_the_proxy_are_refused_in_words_whatever_they_say(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,)) as hub:
        for headers in ({}, {"X-Forwarded-For": PROXY, "X-Forwarded-Proto": "https"}):
            code, words = await refusal(hub, headers, source="127.0.0.3")
            assert (code, "through its proxy only" in words) == (403, True)


async def test_who_came_to_the_proxy_in_the_clear_is_refused_in_words(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,)) as hub:
        code, words = await refusal(hub, {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"})
        assert (code, "not encrypted" in words) == (403, True)


async def test_room_behind_a_proxy_is_counted_for_the_client_and_not_for_the_proxy(tmp_path: Path) -> None:
    async with running_hub(tmp_path, trusted_proxies=(PROXY,), sockets_before_login=3) as hub:
        await hub.add_account("ada")
        many = {"X-Forwarded-For": "203.0.113.9"}
        async with asked(hub, many) as oldest, asked(hub, many), asked(hub, many):
            code, words = await refusal(hub, many)
            assert (code, words) == (503, "busy: too many logins at once\n")
            async with asked(hub, {"X-Forwarded-For": "198.51.100.4"}) as other, asyncio.timeout(10):
                assert await address_shown(hub, other) == "198.51.100.4"
                await oldest.wait_closed()
