"""Publishing: what goes in, what is refused, and that a refusal changes nothing."""

import asyncio
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from hub.app import Hub
from hub.catalogue import PublishOptions, describe_selector, near_programs, read_candidates
from hub.inspection import inspect_safely
from hub.inspectors import Inspected
from hub.inspectors.sidecar import Sidecar
from hub.matching import Candidate, Selector
from hub.merging import merge
from hub.records import InstallerFacts, Terminal
from hub.store import Transaction
from protocol import limits
from protocol.device import InstallerKind
from protocol.errors import BadFileError, ConflictError, UnknownNameError, UsageError
from protocol.messages import Programs, Sync, Undo
from protocol.messages import State as Report
from tests.harness.installers import make_installer
from tests.hub.rooms import add_account, add_terminal, open_rooms, publish, say_inventory


async def contents(hub: Hub) -> tuple[object, dict[str, str]]:
    """The catalogue, and every file of the object folder with its digest."""
    folder = hub.settings.data_folder / "objects"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    return await hub.catalogue.listing(), files


def options(program: str = "", **given: Any) -> PublishOptions:
    return PublishOptions(program=program, given=given)


@pytest.mark.parametrize(("kind", "program"), [("deb", "hello"), ("wheel", "hello"), ("apk", "org.example.hello")])
async def test_each_kind_of_installer_is_published_under_its_own_name(
    kind: InstallerKind, program: str, tmp_path: Path
) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, kind)
        published = await hub.catalogue.publish(path, options())
        assert (published.program, published.version, published.kind, published.new) == (program, "1.0", kind, True)
        assert published.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        [row] = await hub.catalogue.listing()
        assert (row.program, row.size, row.file_name) == (program, path.stat().st_size, path.name)


async def test_the_same_bytes_twice_are_published_once_even_at_the_same_time(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, "deb")
        both = await asyncio.gather(*(hub.catalogue.publish(path, options()) for _ in range(2)))
        assert sorted(published.new for published in both) == [False, True]
        assert len(await hub.catalogue.listing()) == 1


async def test_a_file_that_changes_while_it_is_published_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_installer(tmp_path, "deb", version="1.0"), make_installer(tmp_path, "deb", version="2.0")

    async def changed_after(path: Path, name: str) -> Inspected:
        found = await inspect_safely(path, name)
        path.write_bytes(new.read_bytes())
        return found

    monkeypatch.setattr("hub.catalogue.inspect_safely", changed_after)
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(BadFileError, match="was changed while it was read"):
            await hub.catalogue.publish(old, options())
        assert await contents(hub) == ([], {})


async def test_the_same_bytes_again_with_the_devices_in_another_order_and_no_room_left_change_nothing(
    tmp_path: Path,
) -> None:
    path = make_installer(tmp_path, "wheel", size=100_000)
    async with open_rooms(tmp_path, store_bytes=150_000) as hub:
        for systems, new in ((["linux", "windows"], True), (["windows", "linux"], False)):
            published = await hub.catalogue.publish(path, options(os_types=systems))
            assert published.new is new
        with pytest.raises(ConflictError, match="for other devices"):
            await hub.catalogue.publish(path, options(os_types=["linux"]))


async def test_a_damaged_file_changes_neither_the_database_nor_the_object_folder(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await hub.catalogue.publish(make_installer(tmp_path, "deb"), options())
        before = await contents(hub)
        for kind in ("deb", "wheel", "apk"):
            sound = make_installer(tmp_path, kind, "other").read_bytes()
            for damaged in (sound[: len(sound) // 2], b"", b"\0" * 1_000):
                path = tmp_path / "damaged"
                path.write_bytes(damaged)
                with pytest.raises(BadFileError, match="damaged"):
                    await hub.catalogue.publish(path, options())
        assert await contents(hub) == before


async def test_what_contradicts_the_header_or_an_earlier_publish_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        path = make_installer(tmp_path, "deb", architecture="arm64")
        with pytest.raises(ConflictError, match="arm64"):
            await hub.catalogue.publish(path, options(architectures=["x86_64"]))
        assert await contents(hub) == ([], {})
        await hub.catalogue.publish(path, options())
        before = await contents(hub)
        with pytest.raises(ConflictError, match="'hello', not 'else'"):
            await hub.catalogue.publish(path, options("else"))
        with pytest.raises(ConflictError, match="other devices"):
            await hub.catalogue.publish(path, options(form_factors=["car"]))
        assert await contents(hub) == before


async def test_what_no_message_could_carry_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        installer = make_installer(tmp_path, "deb", size=100)
        for given in (
            PublishOptions(program="p" * (limits.IDENTIFIER_CHARACTERS + 1)),
            PublishOptions(title="t" * (limits.TEXT_CHARACTERS + 1)),
        ):
            with pytest.raises(BadFileError, match="cannot be published"):
                await hub.catalogue.publish(installer, given)
        assert await hub.catalogue.listing() == []
        assert (await hub.catalogue.publish(installer, PublishOptions(program="p" * 128, title="t" * 1024))).new


@pytest.mark.parametrize(
    "given",
    [
        {"screen_inches_minimum": 13.0, "screen_inches_maximum": 7.0},
        {"screen_inches_minimum": 0.0},
        {"density_dpi_minimum": 480, "density_dpi_maximum": 160},
        {"resolution_minimum": [3840, 2160], "resolution_maximum": [10, 10]},
        {"os_version_minimum": "14", "os_version_maximum": "12"},
        {"models": ["Think*"], "models_excluded": ["Think*"]},
        {"form_factors": ["fone"]},
    ],
)
async def test_what_no_device_could_meet_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(UsageError):
            await hub.catalogue.publish(make_installer(tmp_path, "deb"), options(**given))
        assert await hub.catalogue.listing() == []


@pytest.mark.parametrize("program", ["we/../ird", "two\nlines", " ", "-begins-with-a-dash"])
async def test_a_program_id_is_one_that_can_be_typed(program: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        with pytest.raises(UsageError, match="not a program id"):
            await hub.catalogue.publish(make_installer(tmp_path, "deb"), options(program))


def test_the_words_for_who_an_installer_fits_leave_nothing_out() -> None:
    everything = Selector(
        os_types=("linux",), os_version_minimum="11", os_version_maximum="13", api_level_maximum=34,
        architectures=("arm64",), models=("Pi*",), models_excluded=("Pi 1",), form_factors=("car",),
        screen_inches_minimum=7, screen_inches_maximum=13, resolution_minimum=(1280, 720),
        density_dpi_maximum=320, features_required=("gps",), features_forbidden=("rotary",),
        wheel_tags=("cp311-abi3-any",),
    )  # fmt: skip
    assert describe_selector(everything) == (
        "linux, API up to 34, version 11-13, arm64, cp311-abi3-any, car, Pi*, gps, not Pi 1, not rotary, 7-13 in, "
        "1280x720+ px, up to 320 dpi"
    )


# --- what several sources say ---------------------------------------------------------------------------------------


def deb_facts(**selector: Any) -> InstallerFacts:
    return InstallerFacts(
        package_name="hello", title="Hello", version="1.0-1", release="1.0", kind="deb",
        selector=Selector(**{"os_types": ("linux",)} | selector),
    )  # fmt: skip


def merged(header: dict[str, Any], beside: dict[str, Any], given: dict[str, Any]) -> Selector:
    found = Inspected(facts=deb_facts(**header), sidecar=Sidecar(given=beside))
    return merge("hello.deb", found, options(**given)).facts.selector


def test_the_command_line_beats_the_sidecar_and_both_add_to_the_header() -> None:
    beside = {"form_factors": ["car"], "os_version_minimum": "10", "os_version_maximum": "12"}
    selector = merged({"architectures": ("arm64",)}, beside, {"os_version_minimum": "11", "models": ["Pi*"]})
    assert selector == Selector(
        os_types=("linux",), architectures=("arm64",), form_factors=("car",), os_version_minimum="11", models=("Pi*",)
    )
    entry = merge(
        "hello.deb",
        Inspected(facts=deb_facts(), sidecar=Sidecar(program="greet", title="Greetings", channel="beta")),
        PublishOptions(title="Hi"),
    )
    assert (entry.program, entry.title, entry.channel) == ("greet", "Hi", "beta")


@pytest.mark.parametrize(
    ("header", "given", "result"),
    [
        ({"architectures": ("arm64", "x86_64")}, {"architectures": ["arm64"]}, {"architectures": ("arm64",)}),
        ({"api_level_minimum": 21}, {"api_level_minimum": 24}, {"api_level_minimum": 24}),
        ({"os_version_minimum": "12"}, {"os_version_minimum": "12.1"}, {"os_version_minimum": "12.1"}),
        ({"os_version_maximum": "14"}, {"os_version_maximum": "12.*"}, {"os_version_maximum": "12.*"}),
        ({"features_required": ("gps",)}, {"features_required": ["nfc"]}, {"features_required": ("gps", "nfc")}),
    ],
)
def test_what_was_given_may_narrow_what_the_header_says(
    header: dict[str, Any], given: dict[str, Any], result: dict[str, Any]
) -> None:
    assert merged(header, {}, given) == Selector(**{"os_types": ("linux",)} | header | result)
    assert merged(header, given, {}) == merged(header, {}, given)


@pytest.mark.parametrize(
    ("header", "given"),
    [
        ({"architectures": ("arm64",)}, {"architectures": ["x86_64"]}),
        ({}, {"os_types": ["windows"]}),
        ({"api_level_minimum": 24}, {"api_level_minimum": 21}),
        ({"os_version_maximum": "12"}, {"os_version_maximum": "12.*"}),
    ],
)
def test_what_was_given_may_not_widen_what_the_header_says(header: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(ConflictError, match="was given"):
        merged(header, given, {})


@pytest.mark.parametrize("given", [{"os_version_minimum": "12.1", "os_version_maximum": "12.*"}])
def test_every_version_of_a_major_is_above_its_own_parts(given: dict[str, Any]) -> None:
    assert merged({}, {}, given).os_version_maximum == "12.*"
    with pytest.raises(UsageError, match="nothing fits"):
        merged({}, {}, given | {"os_version_minimum": "13"})


async def test_a_file_without_a_header_is_published_as_the_sidecar_and_the_command_line_say(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        image = tmp_path / "Notes-2.1.AppImage"
        image.write_bytes(b"\x7fELF\x02\x01\x01\0AI\x02" + bytes(1_000))
        with pytest.raises(BadFileError, match="AppImage") as caught:
            await hub.catalogue.publish(image, options())
        assert "lockstep.toml" in caught.value.hint
        beside = tmp_path / f"{image.name}.lockstep.toml"
        beside.write_text(
            'program = "notes"\nversion = "2.1"\nos = "linux 12"\narchitecture = "x86_64"\nchannel = "beta"\n'
        )
        published = await hub.catalogue.publish(image, options(os_version_minimum="11"))
        assert (published.program, published.version, published.kind) == ("notes", "2.1", "appimage")
        assert (published.channel, published.fits) == ("beta", "linux, version 11+, x86_64")
        with pytest.raises(UsageError, match="is a sidecar"):
            await hub.catalogue.publish(beside, options())


@pytest.mark.parametrize("said", [Sidecar(channel="Beta!"), Sidecar(program="a b")])
def test_a_name_that_is_none_is_refused_by_the_sidecar_that_gives_it(said: Sidecar) -> None:
    with pytest.raises(BadFileError, match=r"^hello\.deb\.lockstep\.toml: .* is not a ") as caught:
        merge("hello.deb", Inspected(facts=deb_facts(), sidecar=said), PublishOptions())
    assert caught.value.hint.endswith("Mend hello.deb.lockstep.toml.")
    merge("hello.deb", Inspected(facts=deb_facts(), sidecar=said), PublishOptions(program="hello", channel="beta"))


# --- aliases --------------------------------------------------------------------------------------------------------


async def test_a_package_name_goes_to_the_program_it_was_given_once_and_to_no_other(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        first, second = (make_installer(tmp_path, "deb", version=version) for version in ("1.0", "2.0"))
        assert (await hub.catalogue.publish(first, options("greet"))).program == "greet"
        before = await contents(hub)
        with pytest.raises(ConflictError, match="means program 'greet'") as caught:
            await hub.catalogue.publish(second, options("other"))
        assert caught.value.code == "alias-taken"
        assert await contents(hub) == before
        assert (await hub.catalogue.publish(second, options())).program == "greet"
        await hub.catalogue.alias("greet", "hello", ("linux",), remove=True)
        assert (await hub.catalogue.publish(first, options())).program == "greet", "the same bytes are where they are"
        third = make_installer(tmp_path, "deb", version="3.0")
        assert (await hub.catalogue.publish(third, options())).program == "hello"
        fourth = make_installer(tmp_path, "deb", version="4.0")
        with pytest.raises(ConflictError, match="means program 'hello'"):
            await hub.catalogue.publish(fourth, options("greet"))


async def test_an_alias_is_given_and_taken_by_hand_and_belongs_to_one_program(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await hub.catalogue.publish(make_installer(tmp_path, "deb"), options())
        await hub.catalogue.publish(make_installer(tmp_path, "deb", "other"), options())
        alias = hub.catalogue.alias
        assert (await alias("hello", "org.hello", ("android", "ios")))["changed"] is True
        assert (await alias("hello", "org.hello", ("ios",)))["changed"] is False
        with pytest.raises(ConflictError, match="'hello', not 'other'"):
            await alias("other", "org.hello", ("android",))
        await alias("other", "org.hello", ("linux",))
        with pytest.raises(UnknownNameError, match="no alias"):
            await alias("hello", "org.hello", ("windows",), remove=True)
        found = await hub.catalogue.program("hello")
        known = [("android", "org.hello"), ("ios", "org.hello"), ("linux", "hello")]
        assert [(one.os, one.package) for one in found.aliases] == known


# --- releases -------------------------------------------------------------------------------------------------------


async def candidates(hub: Hub, program: str = "hello", **wanted: str) -> list[tuple[str, str]]:
    async def body(transaction: Transaction) -> tuple[Candidate, ...]:
        return await read_candidates(transaction, program, **wanted)

    return sorted((found.file_version, found.channel) for found in await hub.store.transaction(body))


async def listed(hub: Hub, terminal: Terminal) -> dict[str, str]:
    rows, _ = await hub.syncs.programs(terminal, Programs(id=1))
    return {row.program: row.newest for row in rows}


async def test_a_second_file_for_the_same_devices_is_refused_and_a_newer_build_is_not(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await hub.catalogue.publish(make_installer(tmp_path, "deb", version="1.0-1"), options())
        before = await contents(hub)
        (tmp_path / "again").mkdir()
        twin = make_installer(tmp_path / "again", "deb", version="1.0-1", seed=2)
        with pytest.raises(ConflictError, match=r"hello_1\.0-1_all\.deb for the very devices") as caught:
            await hub.catalogue.publish(twin, options())
        assert caught.value.code == "equal-selector"
        assert await contents(hub) == before
        await hub.catalogue.publish(twin, options(form_factors=["car"]))
        await hub.catalogue.publish(make_installer(tmp_path, "deb", version="1.0-2"), options())
        assert await candidates(hub) == [("1.0-1", "stable"), ("1.0-1", "stable"), ("1.0-2", "stable")]


def correction(program: str = "", title: str = "", channel: str = "", **given: Any) -> PublishOptions:
    return PublishOptions(program=program, title=title, channel=channel, given=given, correct=True)


async def test_a_correction_replaces_what_is_known_of_a_file_and_nothing_else(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        wheel = make_installer(tmp_path, "wheel")
        await hub.catalogue.publish(wheel, options(os_types=["linux"], form_factors=["car"]))
        with pytest.raises(ConflictError, match="for other devices") as caught:
            await hub.catalogue.publish(wheel, options(os_types=["macos"]))
        assert "publish --correct" in caught.value.hint
        corrected = await hub.catalogue.publish(wheel, correction(title="Hello!", os_types=["macos"]))
        assert (corrected.new, corrected.corrected, corrected.title) == (False, True, "Hello!")
        [row] = await hub.catalogue.listing()
        assert row.facts.selector.os_types == ("macos",) and not row.facts.selector.form_factors
        aliases = (await hub.catalogue.program("hello")).aliases
        assert ("macos", "hello") in [(one.os, one.package) for one in aliases]
        again = await hub.catalogue.publish(wheel, correction(os_types=["macos"]))
        assert (again.new, again.corrected, again.title) == (False, False, "Hello!")


async def test_a_correction_reads_anew_what_an_older_hub_did_not_know(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        wheel = make_installer(tmp_path, "wheel")
        published = await hub.catalogue.publish(wheel, options())
        older = structs.replace(published.facts, selector=structs.replace(published.facts.selector, wheel_tags=()))
        row = {"digest": bytes.fromhex(published.digest), "kind": "wheel", "package_name": "hello", "file_version": "1"}
        facts = msgspec.json.encode(older)
        await hub.store.transaction(lambda transaction: transaction.rows("correct_installer", **row, facts=facts))
        assert (await hub.catalogue.publish(wheel, options())).facts == older
        assert (await hub.catalogue.publish(wheel, correction())).facts == published.facts
        assert await candidates(hub) == [("1.0", "stable")]


async def test_a_correction_moves_no_file_to_another_program_release_or_channel_or_onto_another(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        (tmp_path / "again").mkdir()
        first, twin = make_installer(tmp_path, "deb"), make_installer(tmp_path / "again", "deb", seed=2)
        await hub.catalogue.publish(first, options())
        await hub.catalogue.publish(twin, options(form_factors=["car"]))
        await hub.catalogue.publish(make_installer(tmp_path, "deb", "other"), options())
        image = tmp_path / "x.run"
        image.write_bytes(b"#!/bin/sh\n")
        beside = tmp_path / "x.run.lockstep.toml"
        beside.write_text('program = "x"\nversion = "1.0"\nos = "linux"\n')
        await hub.catalogue.publish(image, options())
        beside.write_text('program = "x"\nversion = "2.0"\nos = "linux"\n')
        before = await contents(hub)
        for file, given, words in (
            (first, correction("else"), "'hello', not 'else'"),
            (first, correction(channel="beta"), "not beta"),
            (twin, correction(), r"hello_1\.0_all\.deb for the very devices"),
            (image, correction(), r"as release 1\.0, not 2\.0"),
        ):
            with pytest.raises(ConflictError, match=words):
                await hub.catalogue.publish(file, given)
        beside.write_text('program = "x"\nversion = "1.0"\nos = "linux"\npackage = "hello"\n')
        with pytest.raises(ConflictError, match="means program 'hello', not 'x'"):
            await hub.catalogue.publish(image, correction())
        assert await contents(hub) == before
        assert (await hub.catalogue.publish(twin, correction(form_factors=["tv"]))).corrected


async def test_a_delivery_that_is_under_way_is_left_alone_by_a_correction(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        installer = make_installer(tmp_path, "deb")
        published = await hub.catalogue.publish(installer, options())
        await hub.syncs.accept(asks, Sync(id=1, request_key="k", program="hello", targets=(asks.terminal_id,)))
        await hub.catalogue.publish(installer, correction(form_factors=["car"]))
        owed = await hub.deliveries.claim(asks.terminal_id, asks.connection)
        assert owed is not None and owed.digest.hex() == published.digest


async def test_an_epoch_that_nobody_says_makes_a_release_the_newest(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        for version in ("2:0.5-1", "1.10-1"):
            await hub.catalogue.publish(make_installer(tmp_path, "deb", version=version), options())
        assert [one.version for one in (await hub.catalogue.program("hello")).releases] == ["0.5", "1.10"]
        assert await listed(hub, asks) == {"hello": "0.5"}


async def test_of_two_files_for_the_same_devices_at_the_same_time_one_gets_in_and_nothing_of_the_other_stays(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        files = []
        for seed in (1, 2):
            (tmp_path / str(seed)).mkdir()
            files.append(make_installer(tmp_path / str(seed), "deb", seed=seed))
        results = await asyncio.gather(
            *(hub.catalogue.publish(file, options()) for file in files), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["ConflictError", "Published"]
        assert len(await candidates(hub)) == 1
        assert len(hub.objects.digests()) == 1, "the bytes of the refused one are not kept"


async def test_a_channel_is_asked_for_by_name_and_a_pinned_version_is_found_in_any(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path, "1.0")
        beta = make_installer(tmp_path, "deb", version="2.0", size=1_000)
        await hub.catalogue.publish(beta, PublishOptions(channel="beta"))
        stable, both = [("1.0", "stable")], [("1.0", "stable"), ("2.0", "beta")]
        assert await candidates(hub) == await candidates(hub, channel="gamma") == stable
        assert await candidates(hub, channel="beta") == await candidates(hub, version="2.0") == both
        assert await listed(hub, asks) == {"hello": "1.0"}
        with pytest.raises(ConflictError, match="in the channel beta, not gamma"):
            await hub.catalogue.publish(beta, PublishOptions(channel="gamma"))
        assert (await hub.catalogue.move("hello", "2.0", "stable"))["changed"] is True
        assert (await hub.catalogue.move("hello", "2.0.0", "stable"))["changed"] is False
        assert await candidates(hub) == [("1.0", "stable"), ("2.0", "stable")]
        for wrong in ("", "Beta", "a b", "b" * 65):
            with pytest.raises(UsageError, match="not a channel"):
                await hub.catalogue.move("hello", "2.0", wrong)


async def test_a_yanked_release_is_no_candidate_and_not_listed_and_stays_so_when_it_is_published_again(
    tmp_path: Path,
) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path, "1.0")
        await publish(hub, tmp_path, "2.0")
        assert await hub.catalogue.yank("hello", "2.0") == {
            "program": "hello", "version": "2.0", "yanked": True, "channel": "stable", "changed": True,
        }  # fmt: skip
        again = await publish(hub, tmp_path, "2.0")
        assert (again.new, again.yanked) == (False, True)
        assert await candidates(hub) == await candidates(hub, version="2.0") == [("1.0", "stable")]
        assert await listed(hub, asks) == {"hello": "1.0"}
        await hub.catalogue.yank("hello", "1.0")
        assert await listed(hub, asks) == {}
        assert [(row.version, row.yanked) for row in (await hub.catalogue.program("hello")).releases] == [
            ("2.0", True),
            ("1.0", True),
        ]
        assert (await hub.catalogue.restore("hello", "2.0"))["changed"] is True
        assert await listed(hub, asks) == {"hello": "2.0"}
        with pytest.raises(UnknownNameError, match=r"no release '2\.1'.*2\.0"):
            await hub.catalogue.yank("hello", "2.1")


async def test_a_retired_program_is_not_listed_and_takes_no_new_file_until_it_is_restored(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path, "1.0")
        assert (await hub.catalogue.retire("hello"))["changed"] is True
        assert (await hub.catalogue.retire("hello"))["changed"] is False
        assert await candidates(hub) == [] and await listed(hub, asks) == {}
        before = await contents(hub)
        with pytest.raises(ConflictError, match="retired") as caught:
            await publish(hub, tmp_path, "2.0")
        assert caught.value.code == "retired" and "catalogue restore hello" in caught.value.hint
        again = await publish(hub, tmp_path, "1.0")
        assert (again.new, again.retired) == (False, True)
        assert await contents(hub) == before
        with pytest.raises(UnknownNameError, match="Did you mean hello"):
            await hub.catalogue.restore("helo")
        await hub.catalogue.restore("hello")
        assert await listed(hub, asks) == {"hello": "1.0"}


async def test_what_runs_undo_and_history_keep_what_is_yanked_and_retired(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        first, second = await publish(hub, tmp_path, "1.0"), await publish(hub, tmp_path, "2.0")
        await say_inventory(hub, asks, first)
        accepted = await hub.syncs.accept(
            asks, Sync(id=1, request_key="k", program="hello", targets=(asks.terminal_id,), version="2.0")
        )
        for version in ("1.0", "2.0"):
            await hub.catalogue.yank("hello", version)
        await hub.catalogue.retire("hello")
        owed = await hub.deliveries.claim(asks.terminal_id, asks.connection)
        assert owed is not None and owed.digest.hex() == second.digest
        for state in ("downloading", "verifying", "installing", "done"):
            said = Report(delivery=owed.delivery, state=state)
            await hub.deliveries.report(asks.terminal_id, asks.connection, said)
        await say_inventory(hub, asks, second, first=False)
        [row] = await hub.syncs.targets(asks, accepted.sync)
        assert (row.state, row.version) == ("done", "2.0")
        undone = await hub.syncs.undo(asks, Undo(id=1, request_key="u", sync=accepted.sync))
        assert [(target.state, target.version) for target in undone.targets] == [("queued", "1.0")]
        back = await hub.deliveries.claim(asks.terminal_id, asks.connection)
        assert back is not None and back.digest.hex() == first.digest
        history, _ = await hub.syncs.history(asks, "")
        assert [sync.sync for sync in history] == [undone.sync, accepted.sync]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda catalogue: catalogue.program("helo"),
        lambda catalogue: catalogue.yank("helo", "1.0"),
        lambda catalogue: catalogue.restore("helo"),
        lambda catalogue: catalogue.retire("helo"),
        lambda catalogue: catalogue.move("helo", "1.0", "beta"),
        lambda catalogue: catalogue.alias("helo", "x", ("linux",)),
    ],
)
async def test_an_unknown_program_is_refused_with_the_near_names(act: Any, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_programs(hub, "hello", "else")
        with pytest.raises(UnknownNameError, match=r"no program 'helo'\. Did you mean hello"):
            await act(hub.catalogue)


async def add_programs(hub: Hub, *names: str) -> None:
    async def body(transaction: Transaction) -> None:
        rows = ({"program_id": name, "title": name, "now": 0.0} for name in names)
        await transaction.many("add_program", rows)

    await hub.store.transaction(body)


@pytest.mark.parametrize("typed", ["org.exampl.notes", "or.example.notes", "org.example.notse", "ofg.example.notes"])
async def test_the_near_name_is_found_among_many_that_begin_the_same(typed: str, tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        await add_programs(hub, "org.example.notes", *(f"org.exam{number:05}" for number in range(2_000)))
        near = await hub.store.transaction(lambda transaction: near_programs(transaction, typed))
        assert "org.example.notes" in near


async def test_a_catalogue_of_schema_2_keeps_its_installers_with_the_order_of_their_builds(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        for kind in ("apk", "deb", "wheel"):
            await publish(hub, tmp_path, kind=kind)
        before = await hub.catalogue.listing()
    database = sqlite3.connect(tmp_path / "hub" / "hub.db")
    database.executescript("""
        UPDATE installers SET facts = CAST(json_remove(CAST(facts AS TEXT), '$.sortable_version') AS BLOB);
        DROP TABLE aliases;
        DROP INDEX accounts_by_subject;
        DROP INDEX terminals_by_key;
        ALTER TABLE accounts DROP COLUMN rights;
        ALTER TABLE accounts DROP COLUMN disabled_at;
        ALTER TABLE accounts DROP COLUMN subject;
        ALTER TABLE terminals DROP COLUMN rights;
        ALTER TABLE terminals DROP COLUMN tags;
        ALTER TABLE terminals DROP COLUMN enrolled_by;
        ALTER TABLE terminals DROP COLUMN revoked_at;
        ALTER TABLE terminals DROP COLUMN cloned_at;
        ALTER TABLE installers DROP COLUMN verdict;
        ALTER TABLE installers DROP COLUMN finding;
        DROP TABLE join_keys;
        DROP TABLE verdicts;
        DROP TABLE postures;
        DROP TABLE audit;
        DROP TABLE audit_heads;
        ALTER TABLE programs DROP COLUMN retired;
        ALTER TABLE releases DROP COLUMN channel;
        ALTER TABLE releases DROP COLUMN yanked;
        PRAGMA user_version = 2;
    """)
    database.close()
    async with open_rooms(tmp_path) as hub:
        after = await hub.catalogue.listing()
        assert [one.digest for one in after] == [one.digest for one in before]
        assert {(one.channel, one.yanked, one.retired) for one in after} == {("stable", False, False)}
        codes = [[one.facts.sortable_version for one in told if one.kind == "apk"] for told in (before, after)]
        assert codes[0] == codes[1] != [""]
        again = await hub.catalogue.publish(make_installer(tmp_path, "apk", size=5_000), options("hello"))
        assert not again.new
