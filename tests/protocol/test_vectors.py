"""The test vectors: the committed file is the command's output, and this side agrees with every one of them."""

import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import chunks, codec, keys, messages, vectors
from protocol.chunks import Manifest
from protocol.errors import ProtocolError
from protocol.messages import Chunks, ManifestPage, Offer, Want
from protocol.transfer import Receiver

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "protocol-vectors.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def from_json(value: Any) -> Any:
    """Undo the JSON form: {"bytes": hex} becomes bytes."""
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"]) if set(value) == {"bytes"} else {n: from_json(v) for n, v in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def test_the_committed_file_is_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "protocol.vectors"], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    assert printed.stderr == b""
    assert printed.stdout == FILE.read_bytes()


def test_the_vectors_are_the_same_each_time_and_small() -> None:
    assert vectors.text() == vectors.text() == FILE.read_text(encoding="utf-8")
    assert FILE.stat().st_size < 300_000


def test_there_is_one_message_vector_of_every_kind() -> None:
    assert sorted(one["kind"] for one in VECTORS["messages"]) == sorted(messages.BY_KIND)


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["kind"])
def test_each_message_vector_reads_as_its_json_and_writes_as_its_bytes(vector: dict[str, Any]) -> None:
    fields = from_json(vector["json"])
    message = msgspec.convert(fields, messages.BY_KIND[vector["kind"]], builtin_types=(bytes,))
    assert fields["kind"] == vector["kind"]
    assert codec.decode(bytes.fromhex(vector["hex"])) == message
    assert codec.encode(message).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["why"])
def test_each_refused_vector_is_refused_with_its_code(vector: dict[str, str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(bytes.fromhex(vector["hex"]))
    assert caught.value.code == vector["code"]


@pytest.mark.parametrize(("name", "key"), [("challenge", "hub_key"), ("enrol", "device_key"), ("login", "device_key")])
def test_each_signature_is_by_its_key_over_its_bytes_and_is_in_the_message(name: str, key: str) -> None:
    vector = VECTORS["keys"][name]
    public_key, signature = bytes.fromhex(VECTORS["keys"][key]), bytes.fromhex(vector["signature"])
    assert keys.verifies(public_key, signature, bytes.fromhex(vector["signed_bytes"]))
    message = next(one for one in VECTORS["messages"] if one["kind"] == name)
    assert message["json"]["signature"] == {"bytes": vector["signature"]}


def test_signed_bytes_can_be_built_from_the_documents_words_alone() -> None:
    said = VECTORS["keys"]
    nonces = [bytes.fromhex(said[name]) for name in ("terminal_nonce", "hub_nonce", "hub_key")]
    where = [said["host"].encode(), str(said["port"]).encode()]
    parts = {
        "challenge": [b"lockstep.v1 challenge", *nonces],
        "enrol": [b"lockstep.v1 enrol", *nonces, b"alice", bytes.fromhex(said["sealing_key"]), *where],
        "login": [b"lockstep.v1 login", *nonces, said["terminal"].encode(), *where],
    }
    for name, values in parts.items():
        assert b"".join(len(one).to_bytes(4, "big") + one for one in values).hex() == said[name]["signed_bytes"]


def test_the_example_object_is_cut_and_packed_as_the_vectors_say() -> None:
    vector, data = VECTORS["object"], vectors.object_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (100_000, vector["sha256"])
    pairs = list(chunks.pack(io.BytesIO(data), chunks.chunking_for(len(data))))
    assert Manifest.of(entry for entry, _ in pairs).data.hex() == vector["manifest"]
    assert b"".join(stored for _, stored in pairs).hex() == vector["pack"]
    assert {one["form"] for one in vector["chunks"]} == {"raw", "lz4"}
    assert [one["raw"][1] - one["raw"][0] for one in vector["chunks"]] == [entry.raw_size for entry, _ in pairs]


def step_bytes(step: dict[str, Any]) -> bytes:
    if "hex" in step:
        return bytes.fromhex(step["hex"])
    start, end = step["data_is_pack"]
    data = bytes.fromhex(step["hex_before_data"]) + bytes.fromhex(VECTORS["object"]["pack"])[start:end]
    assert hashlib.sha256(data).hexdigest() == step["sha256"]
    return data


def test_a_receiver_that_follows_the_transfer_vector_ends_with_the_object() -> None:
    vector = VECTORS["object"]
    steps = [codec.decode(step_bytes(step)) for step in vector["transfer"]]
    assert isinstance(steps[0], Offer)
    receiver, file = Receiver(steps[0]), bytearray(vectors.object_bytes())
    for step in steps[1:]:
        match step:
            case ManifestPage():
                receiver.add_page(step)
                for index in vector["already_there"]:
                    receiver.have(index)
                begin, end = vector["chunks"][vector["already_there"][0]]["raw"]
                file[:begin], file[end:] = bytes(begin), bytes(len(file) - end)
            case Want(runs=runs):
                assert receiver.next_want() == runs
            case Chunks():
                offset, raw_chunks = receiver.accept(step)
                file[offset : offset + sum(map(len, raw_chunks))] = b"".join(raw_chunks)
    assert receiver.complete
    assert hashlib.sha256(file).hexdigest() == vector["sha256"]


def test_the_annotated_bytes_of_the_document_are_those_of_the_vectors() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    shown = {"".join(line.partition(" ")[0] for line in block.splitlines()) for block in blocks}
    hello = next(one["hex"] for one in VECTORS["messages"] if one["kind"] == "hello")
    steps = VECTORS["object"]["transfer"]
    want = next(step["hex"] for step in steps if step["kind"] == "want")
    frame = next(step["hex_before_data"] for step in steps if step["kind"] == "chunks")
    login = VECTORS["keys"]["login"]["signed_bytes"] + VECTORS["keys"]["login"]["signature"]
    assert {hello, want, frame, login} <= shown


def test_the_window_trace_keeps_the_rules_of_the_document() -> None:
    trace = VECTORS["window"]
    assert [step["frames_acknowledged"] for step in trace] == list(range(1, 41))
    before: dict[str, Any] = {"frames_sent": 0, "frames_acknowledged": 0, "window_after": 2}
    for step in trace:
        if step["frames_sent"] > before["frames_sent"]:
            assert step["frames_sent"] - before["frames_acknowledged"] <= before["window_after"]
        assert abs(step["window_after"] - before["window_after"]) <= 1
        before = step
    windows = [step["window_after"] for step in trace]
    assert (windows[0], min(windows), windows[-1]) == (3, 2, 2)
    assert max(windows) > 8
