"""TLS at a real hub: which versions it speaks, and a certificate that is renewed while it runs."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from hub.config import Settings
from hub.reception import tls_context
from protocol import messages
from protocol.errors import UnavailableError
from tests.harness.certificates import Certificate, make_certificate
from tests.harness.fleets import until
from tests.harness.hubs import PASSWORD, HubProcess, RunningHub, running_hub
from tests.harness.raw import RawTerminal


@asynccontextmanager
async def encrypted_terminal(port: int, certificate: Certificate) -> AsyncIterator[RawTerminal]:
    """Open wss:// to a hub whose certificate has to be this one."""
    async with connect(
        f"wss://127.0.0.1:{port}", ssl=certificate.trusting(), subprotocols=[Subprotocol("lockstep.v1")],
        compression=None, ping_interval=None, proxy=None,
    ) as socket:  # fmt: skip
        yield RawTerminal(socket, "127.0.0.1", port)


async def certificate_shown(port: int) -> bytes:
    """Return the certificate a new connection is shown, in DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return shown


async def add_account(data: Path) -> None:
    """Add the account `ada` as an operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "account", "add", "ada", "--password-stdin", "--data", str(data),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await process.communicate(PASSWORD.encode() + b"\n")
    assert process.returncode == 0


@asynccontextmanager
async def encrypted_hub(folder: Path) -> AsyncIterator[tuple[HubProcess, Certificate]]:
    """Run `lockstep-hub serve` as a process with TLS and the account `ada`."""
    first = make_certificate(folder)
    settings = {"tls_cert": str(first.certificate), "tls_key": str(first.key)}
    await add_account(folder / "hub-data")
    async with HubProcess(folder / "hub-data", settings=settings) as hub:
        yield hub, first


async def told_to_reload(hub: HubProcess, words: str) -> None:
    """Send SIGHUP and wait until the hub's log says `words`."""
    before = hub.log.read_text().count(words)
    os.kill(hub.pid, signal.SIGHUP)
    await until(lambda: hub.log.read_text().count(words) > before, within_seconds=20)


async def test_after_sighup_new_connections_get_the_new_certificate_and_old_ones_live_on(tmp_path: Path) -> None:
    async with encrypted_hub(tmp_path) as (hub, first):
        assert await certificate_shown(hub.port) == first.encoded
        async with encrypted_terminal(hub.port, Certificate(_copy(first.certificate), first.key)) as old:
            await old.enrol("ada")
            second = make_certificate(tmp_path)
            assert second.encoded != (tmp_path / "old.crt").read_bytes()
            await told_to_reload(hub, "certificate is read again")
            assert await certificate_shown(hub.port) == second.encoded
            async with encrypted_terminal(hub.port, second) as new:
                await new.enrol("ada", name="New")
            await old.say(messages.DevicesRequest(id=9))
            while (await old.hear(messages.Devices)).re != 9:
                pass


async def test_sighup_leaves_a_line_where_nothing_has_changed(tmp_path: Path) -> None:
    await add_account(tmp_path / "hub-data")
    async with HubProcess(tmp_path / "hub-data") as hub:
        await told_to_reload(hub, "the scan rules")  # a hub that has only just started reads them for the first time
        await told_to_reload(hub, "those in use have not changed")


async def test_a_certificate_of_no_use_leaves_no_data_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "hub.crt").write_text("not a certificate")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "new"),
        "--tls-cert", str(tmp_path / "hub.crt"), "--tls-key", str(tmp_path / "hub.crt"), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1 and b"The TLS certificate or key cannot be used" in errors
    assert not (tmp_path / "new").exists()


def _copy(path: Path) -> Path:
    copy = path.with_name("old.crt")
    copy.write_bytes(path.read_bytes())
    return copy


BROKEN: dict[str, Callable[[Certificate], object]] = {
    "no certificate": lambda made: made.certificate.write_text("not a certificate"),
    "half a certificate": lambda made: made.certificate.write_bytes(made.certificate.read_bytes()[:300]),
    "the key of another": lambda made: made.key.write_bytes(
        make_certificate(made.key.parent, "other").key.read_bytes()
    ),
    "no file": lambda made: made.key.unlink(),
}


async def test_new_files_of_no_use_are_named_and_the_old_certificate_is_kept(tmp_path: Path) -> None:
    async with encrypted_hub(tmp_path) as (hub, first):
        shown = first.encoded
        for break_files in BROKEN.values():
            break_files(make_certificate(tmp_path))
            await told_to_reload(hub, "What there was before is kept.")
            assert await certificate_shown(hub.port) == shown
        last = make_certificate(tmp_path)
        await told_to_reload(hub, "certificate is read again")
        assert await certificate_shown(hub.port) == last.encoded
        log = hub.log.read_text()
    assert log.count("The TLS certificate or key cannot be used") == len(BROKEN)
    assert "Traceback" not in log


async def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    process = await asyncio.create_subprocess_exec(
        "openssl", "pkey", "-in", str(made.key), "-aes256", "-passout", "pass:x", "-out", str(tmp_path / "locked.key")
    )
    assert await process.wait() == 0
    settings = Settings(tls_cert=str(made.certificate), tls_key=str(tmp_path / "locked.key"))
    with pytest.raises(UnavailableError, match="cannot be used"):
        tls_context(settings)


@asynccontextmanager
async def encrypted_here(folder: Path) -> AsyncIterator[tuple[RunningHub, Certificate]]:
    made = make_certificate(folder)
    async with running_hub(folder, tls_cert=str(made.certificate), tls_key=str(made.key)) as hub:
        yield hub, made


def only(version: ssl.TLSVersion, certificate: Certificate) -> ssl.SSLContext:
    """Return a client that speaks this version of TLS and no other."""
    context = certificate.trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")  # or the client itself refuses what is older than 1.2
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_tls_older_than_1_2_is_refused(
    version: ssl.TLSVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with encrypted_here(tmp_path) as (hub, made):
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", hub.server.port, ssl=only(version, made))
        await until(lambda: "UNSUPPORTED_PROTOCOL" in caplog.text, within_seconds=10)  # the hub, not this client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken(version: ssl.TLSVersion, tmp_path: Path) -> None:
    async with encrypted_here(tmp_path) as (hub, made):
        _, writer = await asyncio.open_connection("127.0.0.1", hub.server.port, ssl=only(version, made))
        assert writer.get_extra_info("ssl_object").version() == version.name.replace("v1_", "v1.")
        writer.close()


async def test_plain_words_at_a_tls_port_and_an_end_in_the_middle_leave_nothing_behind(tmp_path: Path) -> None:
    async with encrypted_here(tmp_path) as (hub, made):
        await hub.add_account("ada")
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.server.port)
            writer.write(said)
            writer.write_eof()
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
        await until(lambda: hub.server.reception.count == 0, within_seconds=10)
        async with encrypted_terminal(hub.server.port, made) as terminal:
            await terminal.enrol("ada")
