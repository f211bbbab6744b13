"""The resolver's rows: what a plan says of each target, of channels, yanked releases and retired programs."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from hub.candidates import Candidate, Selector
from hub.records import InstallerFacts
from hub.resolver import REJECTED_SHOWN, Choice, Resolver
from protocol import codec, limits, messages
from protocol.device import DeviceInfo
from protocol.errors import UnknownNameError
from protocol.messages import ForecastRow, MismatchRow, Plan, RejectedRow, TargetRow
from tests.hub.rooms import PHONE, add_account, add_terminal, open_rooms, publish, say_inventory

WIDE: DeviceInfo = structs.replace(PHONE, architectures=("arm64", "armv7"), free_bytes=10_000_000)


def candidate(version: str, *architectures: Any, **more: Any) -> Candidate:
    wanted = more.pop("wanted", {})
    selector = Selector(os_types=("android",), architectures=architectures, **wanted)
    name = f"app-{version}-{'-'.join(architectures)}.apk"
    values = {"kind": "apk", "size": 1_000, "selector": selector, "file_name": name, **more}
    return Candidate(digest=name.encode().ljust(32, b".")[:32], version=version, **values)


def target(device: DeviceInfo, number: int = 0) -> Any:
    return {"terminal_id": f"t-{number}", "name": f"Device {number}", "device": msgspec.json.encode(device)}


def has(one: Candidate, *, known: bool = True, **facts: Any) -> Any:
    """A row of `installed_and_known`; the catalogue may know the file no more, or never have known it."""
    values: dict[str, Any] = {
        "package_name": "app",
        "title": "App",
        "version": one.version,
        "release": one.version,
        "kind": one.kind,
    }
    values |= {"sortable_version": one.sortable_version, "signer_digest": one.signer_digest, **facts}
    stored = InstallerFacts(selector=one.selector, **values)
    return {
        "version": one.version, "kind": one.kind, "digest": one.digest, "release": one.version if known else None,
        "facts": msgspec.json.encode(stored) if known else None,
    }  # fmt: skip


def plan_row(device: DeviceInfo, *pool: Candidate, installed: Any = None, version: str = "") -> TargetRow:
    return Resolver(Choice(pool), version, 1).row(target(device), installed, "waiting")


def test_a_row_says_what_comes_by_which_rule_over_which_other_and_what_may_go_wrong() -> None:
    new = candidate("2.0", "arm64", size=20_000_000)
    row = plan_row(WIDE, new, candidate("1.0"), candidate("3.0", wanted={"api_level_minimum": 36}))
    assert (row.state, row.reason, row.version, row.file_name) == ("queued", "waiting", "2.0", "app-2.0-arm64.apk")
    assert (row.rule, row.runner_up) == ("newest version", "1.0 (apk, any architecture)")
    assert row.forecasts == (
        ForecastRow(code="no-space", detail="It has 10.0 MB free, and the file alone takes 20.0 MB."),
    )
    wants = MismatchRow(field="api_level", wants="Android 16 or newer (API 36)", has="this phone has API 34")
    assert row.rejected == (
        RejectedRow(version="3.0", installer_kind="apk", file_name="app-3.0-.apk", mismatches=(wants,)),
    )


def test_a_row_for_which_nothing_fits_has_the_sentence_and_the_nearest_ones_fields() -> None:
    row = plan_row(WIDE, candidate("2.0", "x86"), candidate("3.0", "x86_64", wanted={"form_factors": ("tv",)}))
    assert (row.state, row.reason, row.rule, row.forecasts) == ("no_match", "no-installer", "", ())
    assert row.detail == "Nearest: 2.0 for x86; this phone is arm64-v8a and armeabi-v7a."
    assert [one.version for one in row.rejected] == ["2.0", "3.0"]
    assert row.mismatches == row.rejected[0].mismatches
    assert [one.field for one in row.rejected[1].mismatches] == ["architecture", "form_factor"]


def test_a_32_bit_build_does_not_silently_replace_a_64_bit_one() -> None:
    old, new = candidate("1.0", "arm64"), candidate("2.0", "armv7")
    row = plan_row(WIDE, old, new, installed=has(old))
    assert (row.state, row.reason) == ("no_match", "narrower")
    assert row.detail == "It has 1.0 with 64 bits, and 2.0 only comes with 32 (armv7); say --version 2.0 to take it."
    assert row.forecasts[0].stops
    row = plan_row(WIDE, old, new, installed=has(old), version="2.0")
    assert (row.state, row.version, row.forecasts[0].stops) == ("queued", "2.0", False)


def test_another_signer_is_only_sent_where_the_version_is_named() -> None:
    old, new = candidate("1.0", signer_digest="aa" * 32), candidate("2.0", signer_digest="bb" * 32)
    row = plan_row(WIDE, old, new, installed=has(old))
    assert (row.state, row.reason) == ("no_match", "signer")
    words = "It has 1.0, signed by another than 2.0, and may refuse that until 1.0 is removed there"
    assert row.detail == f"{words}; say --version 2.0 to try."
    row = plan_row(WIDE, old, new, installed=has(old), version="2.0")
    assert (row.state, row.version) == ("queued", "2.0")
    assert row.forecasts == (ForecastRow(code="signer", detail=f"{words}."),)


@pytest.mark.parametrize(
    ("code", "known", "reason"), [("210", True, "downgrade"), ("190", True, "waiting"), ("190", False, "downgrade")]
)
def test_what_the_catalogue_knows_of_an_installed_file_decides_whether_it_is_newer(
    code: str, known: bool, reason: str
) -> None:
    installed = candidate("9.0", sortable_version=code)
    row = plan_row(WIDE, candidate("2.0", sortable_version="200"), installed=has(installed, known=known))
    assert row.reason == reason


def test_long_words_and_many_rejected_ones_are_cut_so_that_every_page_fits_a_message() -> None:
    globs = tuple(f"model number {place} with a long name" for place in range(40))
    pool = tuple(
        candidate(
            f"{place}.0", "x86", "riscv64",
            wanted={"models": globs, "form_factors": ("tv",), "api_level_minimum": 99, "screen_inches_minimum": 90.0,
                    "os_version_minimum": "99", "density_dpi_minimum": 900, "features_required": ("x",)},
        )
        for place in range(30)
    )  # fmt: skip
    device = structs.replace(WIDE, screen_inches=6.0, density_dpi=400, features=("y",))
    alone = Resolver(Choice(pool), "", 1).row(target(device), None, "waiting")
    assert len(alone.rejected) == REJECTED_SHOWN
    assert all(len(one.wants) <= 160 for one in alone.mismatches)
    many = Resolver(Choice(pool), "", limits.TARGETS_PER_SYNC)
    rows = [many.row(target(device, number), None, "waiting") for number in range(limits.TARGETS_PER_SYNC)]
    assert rows[0].mismatches == alone.mismatches
    pages = codec.pages(rows)
    assert len(pages) < limits.OUTBOUND_CONTROL_MESSAGES / 2
    for page in pages:
        codec.encode(messages.PlanResult(re=1, program="app", targets=page, more=True))


def test_two_thousand_targets_of_twenty_kinds_are_resolved_in_a_few_hundred_milliseconds() -> None:
    pool = tuple(candidate(f"{place}.0", "arm64", sortable_version=str(place)) for place in range(100))
    kinds = [structs.replace(WIDE, density_dpi=100 + number) for number in range(20)]
    targets = [target(structs.replace(kinds[number % 20], free_bytes=number), number) for number in range(2_000)]
    installed = has(pool[0])
    spent = []
    for _ in range(2):  # the better of two, since other work shares this machine
        resolver = Resolver(Choice(pool), "", 2_000)
        start = time.process_time()
        rows = [resolver.row(one, installed, "waiting") for one in targets]
        spent.append(time.process_time() - start)
    assert {row.version for row in rows} == {"99.0"}
    assert min(spent) < 0.5


# --- with the catalogue -------------------------------------------------------------------------------------------


async def test_a_channel_is_taken_beside_stable_and_a_named_version_is_found_in_any(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        for version in ("1.0", "2.0"):
            await publish(hub, tmp_path, version)
        await hub.catalogue.move("hello", "2.0", "beta")

        async def planned(**more: Any) -> TargetRow:
            [row] = await hub.syncs.plan(asks, Plan(id=1, program="hello", targets=(asks.terminal_id,), **more))
            return row

        assert [(await planned(**more)).version for more in ({}, {"channel": "beta"}, {"version": "2.0"})] == [
            "1.0",
            "2.0",
            "2.0",
        ]
        assert " hello has no release in the channel bata." in (await planned(channel="bata")).detail
        assert "no release" not in (await planned(channel="beta")).detail
        await hub.catalogue.yank("hello", "1.0")
        row = await planned()
        assert (row.state, row.reason) == ("no_match", "no-installer")
        assert row.detail == "hello has nothing in the channel stable; say --channel beta for what is there."
        row = await planned(channel="nightly")
        assert "in the channels stable and nightly" in row.detail
        await hub.catalogue.yank("hello", "2.0")
        assert (await planned()).detail == "Every release of hello is yanked."


async def test_a_yanked_release_and_a_retired_program_say_so_when_they_are_named(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        for version in ("1.0", "2.0"):
            await publish(hub, tmp_path, version)
        await hub.catalogue.yank("hello", "2.0")
        plan = Plan(id=1, program="hello", targets=(asks.terminal_id,))
        assert (await hub.syncs.plan(asks, plan))[0].version == "1.0"
        with pytest.raises(UnknownNameError, match=r"hello 2\.0 is yanked") as caught:
            await hub.syncs.plan(asks, structs.replace(plan, version="v2.0"))
        assert (caught.value.code, caught.value.hint) == ("unknown-version", "Releases: 1.0.")
        await hub.catalogue.retire("hello")
        with pytest.raises(UnknownNameError, match="retired") as caught:
            await hub.syncs.plan(asks, plan)
        assert caught.value.code == "unknown-program"


async def test_what_a_target_has_is_compared_as_its_kind_does(tmp_path: Path) -> None:
    async with open_rooms(tmp_path) as hub:
        asks = await add_terminal(hub, await add_account(hub))
        await publish(hub, tmp_path, "1.0-2~bpo12+1")
        newest = await publish(hub, tmp_path, "1.0-2")
        plan = Plan(id=1, program="hello", targets=(asks.terminal_id,))
        assert (await hub.syncs.plan(asks, plan))[0].digest == bytes.fromhex(newest.digest)
        await say_inventory(hub, asks, structs.replace(newest, version="1.0-2~bpo12+1", digest="ab" * 32))
        assert (await hub.syncs.plan(asks, plan))[0].state == "queued"
        await say_inventory(hub, asks, structs.replace(newest, version="1:0.1", digest="ab" * 32), first=False)
        assert (await hub.syncs.plan(asks, plan))[0].reason == "downgrade"
