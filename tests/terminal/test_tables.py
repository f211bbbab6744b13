"""What is shown: words, tables for a pipe and a screen, documents."""

import json
from datetime import UTC, datetime

import pytest
from msgspec import structs
from rich.console import Console, RenderableType

from protocol.device import DeviceInfo
from protocol.messages import (
    DeviceRow,
    ForecastRow,
    InboxRow,
    MismatchRow,
    ProgramRow,
    RejectedRow,
    SyncRow,
    TargetRow,
)
from terminal import tables

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
BOX_CHARACTERS = set("│─┃━┏┓┗┛┌┐└┘╭╮╰╯╶╴╺╸")

PHONE = DeviceRow(
    terminal="t-1",
    name="Phone",
    online=True,
    device=DeviceInfo(
        model="Pixel 9",
        form_factor="phone",
        os_type="android",
        os_version="13",
        api_level=33,
        architectures=("arm64", "armv7"),
        screen_inches=6.3,
        resolution=(1080, 2424),
    ),
)
SCREEN = DeviceRow(
    terminal="t-2", name="电视", online=False, device=DeviceInfo(model="Set"), last_seen=NOW.timestamp() - 200
)
SENT = TargetRow(
    terminal="t-1",
    name="Phone",
    state="queued",
    detail="Of all installers only this fits.",
    version="8.0",
    installer_kind="apk",
    file_name="w.apk",
    size=12_345_678,
)
NOTHING_FITS = TargetRow(
    terminal="t-2",
    name="Car",
    state="no_match",
    detail="None fits.",
    mismatches=(MismatchRow(field="os_version", wants="Android 9 or newer", has="the device has Android 8"),),
)


def lines_of(table: tables.Table) -> list[str]:
    return tables.plain_text(table).split("\n")


def drawn(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (4 * 2**30, "4.3 GB"),
        (5 * 10**12, "5000.0 GB"),
    ],
)
def test_sizes_are_told_in_the_unit_that_fits(size_bytes: int, words: str) -> None:
    assert tables.size_words(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "now"), (0.5, "now"), (1, "1 s ago"), (60, "1 min ago"), (7200, "2 h ago"), (200_000, "2 d ago")],
)
def test_ages_are_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert tables.age_words(seconds) == words


def test_names_from_other_devices_cannot_draw_on_the_screen() -> None:
    assert tables.printable("\x1b[31mred\nline\ttab\u202e") == "[31mred line tab"
    assert tables.printable("电视 café 📺") == "电视 café 📺"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (TargetRow(terminal="t", name="T", state="downloading", size=300, done=100), "downloading 33 %"),
        (TargetRow(terminal="t", name="T", state="downloading", size=300, done=400), "downloading 100 %"),
        (TargetRow(terminal="t", name="T", state="downloading"), "downloading"),
        (TargetRow(terminal="t", name="T", state="queued", reason="offline"), "queued (offline)"),
        (TargetRow(terminal="t", name="T", state="done"), "done"),
    ],
)
def test_a_state_is_told_with_its_progress_or_reason(target: TargetRow, words: str) -> None:
    assert tables.state_words(target) == words


def test_the_summary_counts_the_targets_by_state() -> None:
    assert tables.summary((SENT, NOTHING_FITS, SENT)) == "3 targets: 2 queued, 1 no_match."
    assert tables.summary((SENT,)) == "1 target: 1 queued."
    assert tables.summary(()) == "There is no device to bring it to."


# --- tables for a pipe --------------------------------------------------------------------------------------------


def test_devices_are_listed_by_name_with_this_one_marked() -> None:
    header, first, second = lines_of(tables.devices_table((SCREEN, PHONE), this="t-1", now=NOW))
    assert header.split() == ["NAME", "ID", "ONLINE", "MODEL", "KIND", "SYSTEM", "ARCHITECTURE", "SCREEN"]
    assert first.startswith("Phone (this device)  t-1  yes ")
    assert "Android 13 (API 33)" in first
    assert "arm64, armv7" in first
    assert first.endswith("6.3 in, 1080 x 2424")
    assert "seen 3 min ago" in second
    assert "this device" not in second


def test_a_device_nobody_has_seen_is_just_not_online() -> None:
    row = DeviceRow(terminal="t-3", name="New", online=False, device=DeviceInfo(model="M"))
    assert tables.devices_table((row,), this="t-1", now=NOW).rows[0][2] == "no"


def test_columns_stay_aligned_beside_wide_characters() -> None:
    table = tables.Table(columns=("A", "B"), rows=(("电视", "x"), ("abcd", "y"), ("", "z")))
    assert lines_of(table) == ["A     B", "电视  x", "abcd  y", "-     z"]


def test_a_pipe_gets_no_escape_codes_tabs_or_boxes_and_one_line_a_row() -> None:
    hostile = TargetRow(terminal="t-9", name="\x1b[2J\tevil\nname", state="done", detail="a\r\nb\x07")
    text = tables.plain_text(tables.plan_table((SENT, NOTHING_FITS, hostile)))
    assert len(text.split("\n")) == 4
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert not BOX_CHARACTERS & set(text)


def test_an_empty_table_is_a_sentence() -> None:
    assert lines_of(tables.history_table((), now=NOW)) == ["There have been no syncs."]
    assert "no such program" in drawn(tables.rich_table(tables.programs_table((), ())))


def test_programs_name_the_devices_they_are_on() -> None:
    row = ProgramRow(
        program="weixin", title="Weixin", newest="8.0", installer_kinds=("apk", "deb"), installed_on=("t-2", "t-77")
    )
    assert tables.programs_table((row,), (PHONE, SCREEN)).rows == (
        ("weixin", "Weixin", "8.0", "apk, deb", "电视, t-77"),
    )


def test_a_plan_says_what_would_be_sent_and_why() -> None:
    assert tables.plan_table((SENT,)).rows == (
        ("Phone", "t-1", "to be sent", "8.0", "apk", "w.apk", "12.3 MB", "Of all installers only this fits."),
    )
    assert tables.plan_table((SENT,)).columns[-1] == "WHY"


def test_a_plan_says_what_may_go_wrong_in_a_column_that_is_only_there_when_something_may() -> None:
    forecasts = (
        ForecastRow(code="signer", detail="No.", stops=True),
        ForecastRow(code="no-space", detail="Too\tlarge."),
    )
    table = tables.plan_table((SENT, structs.replace(SENT, forecasts=forecasts)))
    assert table.columns[-2:] == ("WHY", "BUT")
    assert [row[-1] for row in table.rows] == ["", "Too large."]


WANTS = tuple(
    MismatchRow(field=field, wants=wants, has="this TV is \x1b[31mother")
    for field, wants in (("os_type", "iOS"), ("architecture", "arm64"))
)
REJECTED = (
    RejectedRow(version="8.0", installer_kind="apk", file_name="w.apk", mismatches=WANTS[1:]),
    RejectedRow(version="8.1", installer_kind="ipa", file_name="", mismatches=WANTS),
)


def test_what_is_in_the_way_is_shown_field_by_field_of_the_nearest_or_of_all() -> None:
    none = structs.replace(NOTHING_FITS, rejected=REJECTED)
    some = structs.replace(SENT, digest=b"x" * 32, rejected=REJECTED[1:])
    nearest = ("Car", "8.0", "apk", "w.apk", "architecture", "arm64", "this TV is  [31mother")
    assert tables.rejected_table((none, some), everything=False).rows == (nearest,)
    rows = tables.rejected_table((none, some), everything=True).rows
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("Car", "8.0", "architecture"),
        ("Car", "8.1", "os type"),
        ("Car", "8.1", "architecture"),
        ("Phone", "8.1", "os type"),
        ("Phone", "8.1", "architecture"),
    ]


def test_a_plan_says_the_hubs_sentence_on_what_is_in_the_way() -> None:
    assert tables.plan_table((NOTHING_FITS,)).rows[0][2] == "nothing fits"
    assert lines_of(tables.plan_table((NOTHING_FITS,)))[1].endswith(f" {NOTHING_FITS.detail}")


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("queued", "offline", "to be sent when it is online"),
        ("same", "", "has it already"),
        ("no_match", "no-installer", "nothing fits"),
        ("no_match", "narrower", "not sent (narrower)"),
        ("denied", "rights", "denied (rights)"),
    ],
)
def test_a_plan_says_what_happens_instead_of_sending(state: str, reason: str, words: str) -> None:
    row = TargetRow(terminal="t", name="T", state=state, reason=reason)
    assert tables.plan_table((row,)).rows[0][2] == words


def test_the_history_tells_when_by_whom_and_how_it_ended() -> None:
    row = SyncRow(
        sync="s-1",
        program="weixin",
        version="8.0",
        initiator="t-1",
        created_at=NOW.timestamp(),
        counts={"done": 2, "failed": 1},
        sent=2000,
    )
    assert tables.history_table((row,), now=NOW).rows == (
        ("s-1", "2026-11-22 12:00", "weixin", "8.0", "t-1", "under way", "2 done, 1 failed", "2.0 kB"),
    )


def test_facts_that_are_not_known_are_shown_as_such() -> None:
    table = tables.facts_table({"os_version": "", "api_level": None, "architectures": ["arm64", "x86"], "model": "M"})
    assert lines_of(table)[1:] == [
        "os version     -",
        "api level      -",
        "architectures  arm64, x86",
        "model          M",
    ]


# --- progress -----------------------------------------------------------------------------------------------------


def test_a_pipe_gets_a_line_only_when_a_target_comes_to_another_state() -> None:
    queued = TargetRow(terminal="t-1", name="Phone", state="queued", reason="offline")
    downloading = TargetRow(terminal="t-1", name="Phone", state="downloading", size=100, done=10)
    further = TargetRow(terminal="t-1", name="Phone", state="downloading", size=100, done=90)
    failed = TargetRow(terminal="t-1", name="Phone", state="failed", reason="no-space", detail="100 bytes are missing.")
    assert tables.changed_lines({}, (queued,)) == ["Phone: queued (offline)"]
    assert tables.changed_lines({"t-1": queued}, (downloading,)) == ["Phone: downloading 10 %"]
    assert tables.changed_lines({"t-1": downloading}, (further,)) == []
    assert tables.changed_lines({"t-1": further}, (failed,)) == ["Phone: failed (no-space): 100 bytes are missing."]


def test_progress_on_a_screen_shows_those_under_way_first_and_no_more_than_fit() -> None:
    done = TargetRow(terminal="t-1", name="Phone", state="done", size=10)
    downloading = TargetRow(terminal="t-2", name="Car", state="downloading", size=10, done=5)
    text = drawn(tables.progress_view((done, downloading), rows=1))
    assert "Car" in text
    assert "downloading 50 %" in text
    assert "Phone" not in text
    assert "2 targets: 1 done, 1 downloading." in text


# --- other forms --------------------------------------------------------------------------------------------------


def test_a_screen_shows_names_as_they_are_and_never_cuts_an_id() -> None:
    identifier = "t-" + "0123456789" * 6
    text = drawn(tables.rich_table(tables.Table(columns=("NAME", "ID"), rows=(("[red]x", identifier),))), width=40)
    assert "[red]x" in text
    shown_digits = "".join(character for character in text if character.isdigit())
    assert identifier.removeprefix("t-") in shown_digits


def test_a_document_has_every_field_with_bytes_as_hex() -> None:
    row = TargetRow(terminal="t-1", name="Phone", state="done", digest=b"\x01\xff")
    document = tables.document({"targets": (row,)})
    assert json.loads(json.dumps(document)) == document
    assert document["targets"][0] == {
        "terminal": "t-1",
        "name": "Phone",
        "delivery": "",
        "state": "done",
        "reason": "",
        "detail": "",
        "version": "",
        "installer_kind": "",
        "file_name": "",
        "digest": "01ff",
        "size": 0,
        "done": 0,
        "sent": 0,
        "mismatches": [],
        "rule": "",
        "runner_up": "",
        "forecasts": [],
        "rejected": [],
    }


def test_the_inbox_says_what_asks_and_what_is_put_off_for_how_long() -> None:
    rows = [
        InboxRow(
            delivery=f"d-{seconds:g}",
            program="hello",
            version="1.0",
            installer_kind="deb",
            file_name="hello.deb",
            size=2_000_000,
            initiator="Phone\x1b[31m",
            since=NOW.timestamp() - 120,
            seconds=seconds,
        )
        for seconds in (0.0, 90.0, 7_200.0)
    ]
    shown = tables.inbox_table(rows, now=NOW)
    assert [row[-1] for row in shown.rows] == ["asking", "postponed for 2 min", "postponed for 2 h"]
    assert shown.rows[0][4:7] == ("2.0 MB", "Phone [31m", "2 min ago")


def test_a_sync_that_takes_another_back_says_which() -> None:
    row = SyncRow(sync="s-2", program="hello", initiator="t-1", created_at=0, outcome="done", counts={}, undoes="s-1")
    assert "done (undoes s-1)" in tables.history_table([row], now=NOW).rows[0]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("asking", "", "asking"),
        ("postponed", "quiet-hours", "postponed (quiet-hours)"),
        ("expired", "nobody-answered", "expired (nobody-answered)"),
        ("declined", "by-person", "declined (by-person)"),
    ],
)
def test_states_in_which_a_person_has_a_say_are_shown_with_their_reason(state: str, reason: str, words: str) -> None:
    assert tables.state_words(TargetRow(terminal="t-1", name="TV", state=state, reason=reason)) == words
