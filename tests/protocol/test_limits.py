"""Limits: their relations, and that each has a unit in its name."""

import ast
import re
from pathlib import Path

from protocol import codec, limits, messages
from protocol.device import DeviceInfo

UNITS = ("BYTES", "CHARACTERS", "ITEMS", "SECONDS", "FRAMES", "MESSAGES", "ENTRIES", "RUNS", "DEPTH", "DOUBLINGS")
COUNTS = (
    "TARGETS_PER_SYNC",
    "ROWS_PER_PAGE",
    "INVENTORY_PROGRAMS",
    "INSTALLING_AT_ONCE",
    "INBOX_ROWS",
    "REQUESTS_UNDER_WAY",
    "TAGS_PER_TERMINAL",
    "POSTURE_FINDINGS",
)
VALUES = {name: value for name, value in vars(limits).items() if re.fullmatch(r"[A-Z_]{4,}", name)}


def test_every_limit_ends_in_its_unit_or_is_a_count_that_names_what_it_counts() -> None:
    assert [name for name in VALUES if not name.endswith(UNITS) and name not in COUNTS] == []


def test_every_limit_is_positive_and_times_alone_may_be_fractions() -> None:
    assert all(value > 0 for value in VALUES.values())
    assert all(isinstance(value, float) == name.endswith("SECONDS") for name, value in VALUES.items())


def test_the_largest_object_of_each_chunk_size_has_few_enough_chunks() -> None:
    for doublings in range(limits.CHUNK_SIZE_DOUBLINGS + 1):
        last = doublings == limits.CHUNK_SIZE_DOUBLINGS
        largest = limits.OBJECT_BYTES if last else limits.SMALL_OBJECT_BYTES << doublings
        assert largest // (limits.CHUNK_MINIMUM_BYTES << doublings) <= limits.MANIFEST_ENTRIES


def test_a_text_of_four_byte_characters_at_its_limit_is_a_string_at_its_limit() -> None:
    assert limits.TEXT_CHARACTERS * 4 <= limits.STRING_BYTES


def test_what_lies_between_two_control_messages_is_at_most_one_frame() -> None:
    assert limits.FRAME_BYTES * 2 <= limits.MESSAGE_BYTES
    assert limits.WINDOW_LARGEST_FRAMES * limits.FRAME_BYTES == 4 * limits.MIB


def test_the_module_asserts_its_own_relations() -> None:
    tree = ast.parse(Path(limits.__file__).read_text(encoding="utf-8"))
    assert sum(isinstance(node, ast.Assert) for node in tree.body) >= 8


def test_a_page_of_the_largest_device_rows_fits_one_message() -> None:
    name = "\U0001f4fa" * limits.NAME_CHARACTERS
    device = DeviceInfo(
        model=name,
        model_code=name,
        os_version=name,
        architectures=("ppc64le",) * 8,
        resolution=(100_000, 100_000),
        features=(name,) * 16,
        installer_kinds=("wheel",) * 16,
        free_bytes=2**60,
    )
    row = messages.DeviceRow(
        terminal="\U0001f4fa" * limits.IDENTIFIER_CHARACTERS, name=name, online=True, device=device, address=name
    )
    pages = codec.pages((row,) * 200)
    assert sum(map(len, pages)) == 200
    for page in pages:
        codec.decode(codec.encode(messages.Devices(epoch="e", revision=1, page=0, pages=len(pages), devices=page)))


def test_a_full_inventory_with_the_longest_ascii_names_fits_one_message() -> None:
    longest = "x" * limits.IDENTIFIER_CHARACTERS
    program = messages.InstalledProgram(
        program=longest, package_name=longest, version=longest, installer_kind="wheel", digest=bytes(32)
    )
    codec.decode(codec.encode(messages.Inventory(programs=(program,) * limits.INVENTORY_PROGRAMS)))


def test_a_sync_of_the_most_targets_fits_one_message() -> None:
    targets = ("x" * limits.IDENTIFIER_CHARACTERS,) * limits.TARGETS_PER_SYNC
    codec.decode(codec.encode(messages.Sync(id=1, request_key="k", program="p", targets=targets)))
