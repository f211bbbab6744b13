"""A web page cannot use the socket: what a browser sends for one is refused in words, whatever the page tries."""

import asyncio
from pathlib import Path

import pytest

from tests.harness.hubs import running_hub
from tests.harness.raw import raw_terminal

HANDSHAKE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "lockstep.v1",
}  # fmt: skip
# As Chromium 130 sends them for `new WebSocket("ws://127.0.0.1:8765", "lockstep.v1")` on another site's page.
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "Pragma": "no-cache",
    "Cache-Control": "no-cache", "Accept-Encoding": "gzip, deflate, br", "Accept-Language": "en-GB",
    "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
}  # fmt: skip


async def ask(port: int, headers: dict[str, str], *, path: str = "/") -> tuple[int, str, str]:
    """Send one request as a browser does; return the status, the headers in lower case, and the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *(f"{name}: {headers[name]}" for name in headers)]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            status = int(head.split()[1])
            body = "" if status == 101 else (await reader.read()).decode()
    finally:
        writer.close()
    return status, head, body


PAGES = {
    "another site": {"Origin": "https://evil.example"},
    "a page that hides where it is (a sandboxed frame, a data: address)": {"Origin": "null"},
    "a file": {"Origin": "file://"},
    "a page from the hub's own address": {"Origin": "http://127.0.0.1"},
    "an empty origin": {"Origin": ""},
    "an extension": {"Origin": "chrome-extension://abcdefghijklmnop"},
    "a browser that says so in Sec-Fetch alone": {"Sec-Fetch-Mode": "websocket", "Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_that_opens_a_websocket_is_refused_in_words(page: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        status, _, body = await ask(hub.server.port, HANDSHAKE | BROWSER | PAGES[page])
    assert (status, "not with web pages" in body) == (403, True)


async def test_the_same_handshake_without_a_page_behind_it_opens_one(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        status, head, _ = await ask(hub.server.port, HANDSHAKE | BROWSER)
    assert (status, "sec-websocket-protocol: lockstep.v1" in head) == (101, True)
    assert "permessage-deflate" not in head


async def test_a_page_whose_script_asks_plainly_is_refused_and_may_read_nothing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        status, head, body = await ask(hub.server.port, {"Origin": "https://evil.example", "Sec-Fetch-Mode": "cors"})
    assert (status, "not with web pages" in body) == (403, True)
    assert "access-control" not in head


@pytest.mark.parametrize("origins", [("https://a.example", "https://b.example"), ("", "https://a.example")])
async def test_several_origins_are_no_way_round(origins: tuple[str, str], tmp_path: Path) -> None:
    headers = HANDSHAKE | {"Origin": origins[0], "origin": origins[1]}
    async with running_hub(tmp_path) as hub:
        assert (await ask(hub.server.port, headers))[0] == 403


async def test_a_person_who_opens_the_address_is_told_what_this_is(tmp_path: Path) -> None:
    navigation = BROWSER | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none", "Upgrade-Insecure-Requests": "1"}
    async with running_hub(tmp_path) as hub:
        status, head, body = await ask(hub.server.port, navigation)
        assert (status, "This is a Lockstep hub" in body) == (200, True)
        assert "content-type: text/plain" in head and "x-content-type-options: nosniff" in head
        assert (await ask(hub.server.port, navigation, path="/admin/../x"))[0] == 404


async def test_refused_pages_leave_room_and_others_alone(tmp_path: Path) -> None:
    async with running_hub(tmp_path, sockets_before_login=4) as hub:
        await hub.add_account("ada")
        for _ in range(20):
            assert (await ask(hub.server.port, HANDSHAKE | {"Origin": "https://evil.example"}))[0] == 403
        async with raw_terminal(hub) as terminal:
            await terminal.enrol("ada")
