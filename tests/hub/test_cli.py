"""`lockstep-hub` as a process: what it prints, its exit codes, TLS, and a clean end."""

import asyncio
import datetime
import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from hub.accountcommands import _posture_words, _revoked_words
from protocol import codec, messages
from tests.harness.installers import make_installer
from tests.hub.test_objects import flip_bit

ROOT = Path(__file__).parent.parent.parent


def hub(tmp_path: Path, *arguments: str, password: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hub", *arguments], cwd=ROOT, input=password, capture_output=True, text=True,
        timeout=30, check=False,
        env={**os.environ, "LOCKSTEP_HUB_DATA": str(tmp_path / "hub"), "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"},
    )  # fmt: skip


async def serve(tmp_path: Path, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "serve", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "hub"), *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        found = re.search(r"(wss?://\S+:\d+)", (await process.stdout.readline()).decode())
    assert found
    return process, found[1]


def test_publish_account_and_catalogue_speak_json_and_end_with_their_exit_codes(tmp_path: Path) -> None:
    path = make_installer(tmp_path, "deb")
    added = hub(tmp_path, "account", "add", "ada", "--password-stdin", "--json", password="correct horse\n")
    assert (added.returncode, json.loads(added.stdout)) == (0, {"account": "ada"})
    again = hub(tmp_path, "account", "add", "ada", "--password-stdin", "--json", password="correct horse\n")
    assert (again.returncode, json.loads(again.stdout)["error"]["code"]) == (1, "conflict")
    [published] = json.loads(hub(tmp_path, "publish", str(path), "--json").stdout)
    assert (published["program"], published["new"]) == ("hello", True)
    mixed = hub(tmp_path, "publish", str(path), str(tmp_path / "missing.deb"), "--json")
    first, second = json.loads(mixed.stdout)
    assert (mixed.returncode, first["new"], second["error"]["code"]) == (1, False, "bad-file")
    assert [row["digest"] for row in json.loads(hub(tmp_path, "catalogue", "--json").stdout)] == [first["digest"]]
    assert "Traceback" not in added.stderr + again.stderr + mixed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("catalogue", "show", "--json"), "Missing argument 'PROGRAM'."),
        (("catalogue", "--json", "--nonsense"), "No such option '--nonsense'."),
        (("publish", "--json"), "Name the files to publish"),
        (("publish", "x.deb", "--os-version", "foo", "--json"), "--os-version is 'foo'"),
        (("dance", "--json"), "No such command 'dance'."),
    ],
)
def test_wrong_usage_is_one_json_document_too_and_exit_code_2(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    wrong = hub(tmp_path, *arguments)
    error = json.loads(wrong.stdout)["error"]
    assert (wrong.returncode, wrong.stderr, error["code"]) == (2, "", "usage")
    assert words in error["message"] and set(error) == {"code", "message", "hint"}


@pytest.mark.parametrize("arguments", [("catalogue",), ("catalogue", "--json"), ("publish", "--json"), ("--help",)])
def test_output_that_cannot_be_written_is_one_sentence_and_exit_code_1(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    hub(tmp_path, "publish", str(make_installer(tmp_path, "deb")))
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hub", *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=30, check=False, env={**os.environ, "LOCKSTEP_HUB_DATA": str(tmp_path / "hub")},
        )  # fmt: skip
    said = "Error: The output could not be written: No space left on device.\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_backup_verify_restore_and_check_speak_json_and_end_with_their_exit_codes(tmp_path: Path) -> None:
    nothing = hub(tmp_path, "check", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)["error"]["code"]) == (1, "unavailable")
    hub(tmp_path, "publish", str(make_installer(tmp_path, "deb")))
    file, copy = str(tmp_path / "file"), str(tmp_path / "copy")
    written = hub(tmp_path, "backup", file, "--json")
    assert (written.returncode, json.loads(written.stdout)["objects"]) == (0, 1)
    again = hub(tmp_path, "backup", file, "--json")
    assert (again.returncode, json.loads(again.stdout)["error"]["code"]) == (1, "conflict")
    forced = hub(tmp_path, "backup", "--force", file)
    assert forced.returncode == 0 and "1 objects" in forced.stdout
    assert json.loads(hub(tmp_path, "backup", "verify", file, "--json").stdout)["missing"] == []
    restored = hub(tmp_path, "restore", file, "--data", copy)
    assert restored.returncode == 0 and copy in restored.stdout
    assert hub(tmp_path, "restore", file, "--data", copy).returncode == 1
    sound = hub(tmp_path, "check", "--data", copy)
    assert sound.returncode == 0 and "sound" in sound.stdout and sound.stderr == ""
    [pack] = (tmp_path / "copy").rglob("*.pack")
    flip_bit(pack, 100)
    damaged = hub(tmp_path, "check", "--data", copy, "--json")
    report = json.loads(damaged.stdout)
    assert (damaged.returncode, report["sound"]) == (1, False)
    assert [row["kind"] for row in report["findings"]] == ["damaged"]
    partly = hub(tmp_path, "backup", str(tmp_path / "partly"), "--data", copy)
    assert partly.returncode == 1 and pack.stem in partly.stderr
    flip_bit(Path(file), 8 * 520)
    wrong = hub(tmp_path, "backup", "verify", file, "--json")
    assert (wrong.returncode, json.loads(wrong.stdout)["error"]["code"]) == (1, "bad-file")
    assert hub(tmp_path, "backup").returncode == 2


async def test_a_backup_of_a_running_hub_goes_through_it(tmp_path: Path) -> None:
    process, _ = await serve(tmp_path)
    try:
        file = tmp_path / "file"
        written = await asyncio.to_thread(hub, tmp_path, "backup", str(file), "--json")
        assert (written.returncode, json.loads(written.stdout)["bytes"]) == (0, file.stat().st_size)
        assert (await asyncio.to_thread(hub, tmp_path, "check")).returncode == 0
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.communicate()


def test_ws_off_this_machine_is_refused_without_insecure_lan(tmp_path: Path) -> None:
    refused = hub(tmp_path, "serve", "--listen", "0.0.0.0:0")
    assert refused.returncode == 2
    assert "--insecure-lan" in refused.stderr and "Traceback" not in refused.stderr


async def test_sigterm_tells_the_terminals_1012_and_ends_with_0(tmp_path: Path) -> None:
    process, url = await serve(tmp_path)
    second = await asyncio.to_thread(hub, tmp_path, "serve", "--listen", "127.0.0.1:0")
    assert second.returncode == 1 and "in use" in second.stderr, "one process has the folder"
    async with connect(url, subprotocols=[Subprotocol("lockstep.v1")], proxy=None) as socket:
        await socket.send(codec.encode(messages.Hello(nonce=bytes(32), versions=("lockstep.v1",))))
        assert isinstance(codec.decode(await socket.recv()), messages.Challenge)
        process.send_signal(signal.SIGTERM)
        try:
            await socket.recv()
            raise AssertionError("the hub said something more")
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1012
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors


async def test_the_hub_serves_wss_with_a_certificate_and_survives_garbage_on_its_port(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    process, url = await serve(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key))
    try:
        host, _, port = url.removeprefix("wss://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        writer.close()
        context = ssl.create_default_context(cafile=str(certificate))
        async with connect(url, subprotocols=[Subprotocol("lockstep.v1")], ssl=context, proxy=None) as socket:
            await socket.send(codec.encode(messages.Hello(nonce=bytes(32), versions=("lockstep.v1",))))
            assert isinstance(codec.decode(await socket.recv()), messages.Challenge)
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors


def make_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


def test_one_thing_is_said_in_the_singular() -> None:
    row = {"posture_at": 1.0, "posture_complete": True}
    assert [_posture_words(row | {"posture_findings": count}) for count in (0, 1, 2)] == [
        "clean",
        "1 finding",
        "2 findings",
    ]
    assert _revoked_words(1).startswith("1 device is revoked")
    assert _revoked_words(2).startswith("2 devices are revoked")
