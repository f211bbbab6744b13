"""A pack that is damaged on the hub's disk: nothing damaged is sent, all are told, publishing again mends it."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.objects import Objects, Pack
from protocol import limits
from protocol.device import DeviceInfo
from protocol.errors import BadDataError
from protocol.messages import Run
from tests.harness import devices, make_installer, running_hub
from tests.hub.test_objects import flip_bit

CHUNKS = 1_000
PC = DeviceInfo(model="PC", form_factor="pc", os_type="linux", architectures=("x86_64",), installer_kinds=("deb",))


def flips(objects: Objects, digest: bytes, path: Path, chooser: random.Random) -> Iterator[tuple[Pack, int]]:
    """Flip a random bit in each of a thousand chunks, one at a time; yield the open pack and the chunk."""
    offsets = objects.open(digest).manifest.stored_offsets
    for index in range(CHUNKS):
        pack = objects.open(digest)
        if index % 2:
            pack.read(Run(index, 1))  # half of them flip only after they were read and found right
        bit = chooser.randrange(offsets[index] * 8, offsets[index + 1] * 8)
        flip_one(path, bit)
        yield pack, index
        path.with_name(f"{path.name}.damaged").rename(path)
        flip_one(path, bit)


def flip_one(path: Path, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def test_of_one_bit_flipped_in_each_of_a_thousand_chunks_a_thousand_are_found_and_none_is_served(
    tmp_path: Path,
) -> None:
    chooser = random.Random(3)
    source = tmp_path / "source"
    source.write_bytes(b"".join(b"%x and words that repeat\n" % chooser.getrandbits(160) for _ in range(450_000)))
    objects = Objects(tmp_path / "objects", reserve_bytes=0)
    digest = objects.add(source).digest
    assert objects.open(digest).manifest.count >= CHUNKS
    [path] = (tmp_path / "objects").rglob("*.pack")
    found = 0
    for pack, index in flips(objects, digest, path, chooser):
        with pytest.raises(BadDataError):
            pack.read(Run(max(0, index - 3), min(4, index + 1)))
        found += 1
    assert found == CHUNKS


async def test_a_delivery_of_a_damaged_pack_waits_and_says_so_and_after_publishing_again_it_succeeds(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("ada")
        file = make_installer(tmp_path, "deb", size=limits.MIB)
        published = await hub.publish(file, program="hello")
        async with devices(hub, "ada", [("asks", PC), ("gets", PC)]) as fleet:
            [path] = (hub.folder / "objects").rglob("*.pack")
            flip_bit(path, path.stat().st_size * 8 - 99)
            watch = await fleet.initiator.sync("hello", everyone=True)
            told: list[str] = []
            async with asyncio.timeout(30):
                async for _ in watch.changes():
                    [row] = watch.targets.values()
                    if row.reason == "damaged-object" and not told:
                        told.append(row.detail)
                        assert row.state == "queued", "it is tried again later"
                        assert fleet.digest("gets", "hello") == "" and not path.exists()
                        await hub.publish(file, program="hello")
                        hub.hub.clock.start(hub.hub.clock.now() + 60)  # later is now
            assert watch.outcome == "done"
            assert published.digest in told[0]
            assert fleet.digest("gets", "hello") == published.digest
