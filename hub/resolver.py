"""The resolver: one request's candidates against its targets, into what each target would get and why.

`plan`, `sync` and `lockstep-hub match` run it. Matching itself is `hub.matching`; here come the candidates of a
program, what a terminal has, and the rows of the answer.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct, structs

from hub.candidates import Candidate, Forecast, Installed, Mismatch, Rejection
from hub.catalogue import near_programs, read_candidates
from hub.explaining import told_apart
from hub.matching import Match, compare_versions, forecast, match
from hub.records import InstallerFacts
from hub.store import Row, Transaction
from hub.verdicts import WITHHELD
from protocol import limits
from protocol.device import DeviceInfo
from protocol.errors import UnknownNameError
from protocol.messages import ForecastRow, MismatchRow, RejectedRow, TargetRow

MISMATCHES_SHOWN: Final = 8
REJECTED_SHOWN: Final = 8
# An answer goes out in pages of a frame each, and a socket has room for `limits.OUTBOUND_CONTROL_MESSAGES`. What
# is rejected is told of as far as it fits this, over all targets of a request.
REJECTED_BYTES: Final = 8 * limits.FRAME_BYTES
WANTS_CHARACTERS: Final = 160
LABEL_CHARACTERS: Final = 200
RELEASES_NAMED: Final = 8
REJECTIONS_TOLD: Final = 1_000


class Choice(Struct, frozen=True):
    """What a request for a program may choose from; `nothing` says why where that is nothing.

    `note` is a sentence to add to whatever was chosen, with a space before it.
    """

    candidates: tuple[Candidate, ...]
    nothing: str = ""
    note: str = ""
    reason: str = "no-installer"  # the code that goes with `nothing`


async def read_choice(transaction: Transaction, program: str, channel: str, version: str) -> Choice:
    """Return the candidates of a program: of the channel "stable" and of `channel`, or of a `version` in any channel.

    Raises UnknownNameError for a program that is unknown or retired, and for a version that is unknown or yanked.
    """
    row = await transaction.row("program", program_id=program)
    if row is None:
        near = await near_programs(transaction, program)
        hint = "See `lockstep-terminal programs`; the hub's owner adds one with `lockstep-hub publish`."
        raise UnknownNameError(
            f"The catalogue has no program {program!r}.", near=near, hint="" if near else hint, code="unknown-program"
        )
    if row["retired"]:
        raise UnknownNameError(
            f"The program {program!r} is retired: it is sent no more.",
            hint=f"The hub's owner brings it back with `lockstep-hub catalogue restore {program}`.",
            code="unknown-program",
        )
    releases = await transaction.rows("releases_of_program", program_id=program)
    if version:
        _check_version(program, version, releases)
    candidates = await read_candidates(transaction, program, channel, version)
    withheld = await transaction.rows("withheld_of_program", program_id=program, channel=channel, version=version)
    if version:
        withheld = [row for row in withheld if compare_versions(row["version"], version) == 0]
    if withheld and not any(not version or compare_versions(one.version, version) == 0 for one in candidates):
        return Choice((), _why_withheld(program, withheld), reason=_withheld_reason(withheld))
    nothing = "" if candidates else _why_nothing(program, channel, releases)
    is_missed = bool(channel) and not version and channel not in ("stable", *(row["channel"] for row in releases))
    note = f" {program} has no release in the channel {channel}." if is_missed else ""
    return Choice(candidates, nothing, note + _held_back(program, withheld, candidates))


def _check_version(program: str, version: str, releases: list[Row]) -> None:
    found = [row for row in releases if compare_versions(row["version"], version) == 0]
    have = [row["version"] for row in releases if not row["yanked"]][:RELEASES_NAMED]
    hint = f"Releases: {', '.join(have)}." if have else ""
    if not found:
        raise UnknownNameError(f"{program} has no release {version!r}.", hint=hint, code="unknown-version")
    if all(row["yanked"] for row in found):
        raise UnknownNameError(
            f"{program} {found[0]['version']} is yanked: it is sent no more.", hint=hint, code="unknown-version"
        )


def _withheld_reason(withheld: list[Row]) -> str:
    return "infected" if any(row["verdict"] in WITHHELD for row in withheld) else "not-scanned"


def _held_back(program: str, withheld: list[Row], candidates: tuple[Candidate, ...]) -> str:
    """Say that a newer version than all that may be sent is held back, with a space before it."""
    newest = withheld[0] if withheld else None
    if newest is None or any(compare_versions(one.version, newest["version"]) >= 0 for one in candidates):
        return ""
    return f" {program} {newest['version']} is not sent: it is {newest['verdict']}."


def _why_withheld(program: str, withheld: list[Row]) -> str:
    """Say why none of the installers that are there may be sent, by the first that something was found in."""
    first = next((row for row in withheld if row["verdict"] in WITHHELD), withheld[0])
    what = f"{program} {first['version']} ({first['file_name']})"
    if first["verdict"] in WITHHELD:
        return f"Its installers are withdrawn: {what} is {first['verdict']}: {first['finding']}."
    return f"{what} is not scanned yet, so nobody gets it: {first['finding'].rstrip('.')}. It is tried again by itself."


def _why_nothing(program: str, channel: str, releases: list[Row]) -> str:
    other = sorted({row["channel"] for row in releases if not row["yanked"]} - {"stable", channel})
    if other:
        where = f"the channels stable and {channel}" if channel not in ("", "stable") else "the channel stable"
        return f"{program} has nothing in {where}; say --channel {other[0]} for what is there."
    return f"Every release of {program} is yanked." if releases else ""


async def match_device(
    transaction: Transaction, device: DeviceInfo, program: str, channel: str = "", version: str = ""
) -> Match:
    """Return the match of a device that need not be anybody's, with every candidate it rejects up to `REJECTIONS_TOLD`.

    Raises UnknownNameError as `read_choice` does.
    """
    choice = await read_choice(transaction, program, channel, version)
    found = match(device, choice.candidates, version=version, listed=REJECTIONS_TOLD)
    return structs.replace(found, sentence=choice.nothing or found.sentence + choice.note)


class Resolver:
    """Matches the `targets` of one request; equal devices are matched once."""

    def __init__(self, choice: Choice, version: str, targets: int) -> None:
        self._choice = choice
        self._version = version
        self._rejected_bytes = REJECTED_BYTES // max(targets, 1)
        self._matches: dict[DeviceInfo, tuple[Match, TargetRow]] = {}
        self._facts: dict[bytes, InstallerFacts] = {}

    def row(self, target: Row, installed: Row | None, reason_to_wait: str) -> TargetRow:
        """Return what this target would get. `installed` is a row of `installed_and_known`."""
        device = msgspec.json.decode(target["device"], type=DeviceInfo)
        found, shared = self._match(device)
        base = structs.replace(shared, terminal=target["terminal_id"], name=target["name"])
        if found.chosen is None:
            return base
        if installed is not None and installed["digest"] == found.chosen.digest:
            detail = f"It has {installed['version']} already."
            return structs.replace(base, state="same", reason="installed", detail=detail)
        has = None if installed is None else self._installed(installed)
        forecasts = forecast(device, found.chosen, has, pinned=bool(self._version))
        base = structs.replace(base, forecasts=tuple(map(_forecast_row, forecasts)))
        if forecasts and forecasts[0].stops:
            first = base.forecasts[0]
            return structs.replace(base, state="no_match", reason=first.code, detail=first.detail)
        when = " It is sent when the device is back." if reason_to_wait == "offline" else ""
        detail = _bounded(found.sentence + self._choice.note + when)
        return structs.replace(base, state="queued", reason=reason_to_wait, detail=detail)

    def _match(self, device: DeviceInfo) -> tuple[Match, TargetRow]:
        """Return the match and what the rows of all such devices have in common."""
        key = structs.replace(device, free_bytes=None)  # nothing of the match depends on it
        if key not in self._matches:
            found = match(key, self._choice.candidates, version=self._version)
            self._matches[key] = found, self._shared_row(found)
        return self._matches[key]

    def _shared_row(self, found: Match) -> TargetRow:
        base = TargetRow(
            terminal="-", name="-", state="no_match", rejected=_rejected_rows(found.rejections, self._rejected_bytes)
        )
        if found.chosen is None:
            return structs.replace(
                base,
                reason=self._choice.reason,
                detail=_bounded(self._choice.nothing or found.sentence),
                mismatches=_mismatch_rows(found.rejections[0].mismatches) if found.rejections else (),
            )
        return structs.replace(
            base,
            version=found.chosen.version,
            installer_kind=found.chosen.kind,
            file_name=found.chosen.file_name,
            digest=found.chosen.digest,
            size=found.chosen.size,
            rule=found.rule,
            runner_up=told_apart(found.chosen, found.runner_up)[1][:LABEL_CHARACTERS] if found.runner_up else "",
        )

    def _installed(self, row: Row) -> Installed:
        if row["facts"] is None:
            return Installed(version=row["version"], kind=row["kind"])
        if row["digest"] not in self._facts:
            self._facts[row["digest"]] = msgspec.json.decode(row["facts"], type=InstallerFacts)
        facts = self._facts[row["digest"]]
        return Installed(
            version=row["version"],
            kind=row["kind"],
            release=row["release"],
            sortable_version=facts.sortable_version,
            signer_digest=facts.signer_digest,
            architectures=facts.selector.architectures,
        )


def _rejected_rows(rejections: Iterable[Rejection], most_bytes: int) -> tuple[RejectedRow, ...]:
    """Return the nearest, as many as fit."""
    rows = []
    for rejection in tuple(rejections)[:REJECTED_SHOWN]:
        candidate = rejection.candidate
        row = RejectedRow(
            version=candidate.version,
            installer_kind=candidate.kind,
            file_name=candidate.file_name,
            mismatches=_mismatch_rows(rejection.mismatches),
        )
        most_bytes -= len(msgspec.msgpack.encode(row))
        if most_bytes < 0:
            break
        rows.append(row)
    return tuple(rows)


def _mismatch_rows(mismatches: tuple[Mismatch, ...]) -> tuple[MismatchRow, ...]:
    return tuple(
        MismatchRow(field=one.field, wants=_shortened(one.wants), has=_shortened(one.has))
        for one in mismatches[:MISMATCHES_SHOWN]
    )


def _forecast_row(one: Forecast) -> ForecastRow:
    return ForecastRow(code=one.code, detail=_bounded(one.detail), stops=one.stops)


def _shortened(text: str) -> str:
    return text if len(text) <= WANTS_CHARACTERS else f"{text[: WANTS_CHARACTERS - 3]}..."


def _bounded(text: str) -> str:
    return text[: limits.TEXT_CHARACTERS]
