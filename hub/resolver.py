"""The resolver: one request's candidates against its targets, into what each target would get and why.

`plan` and `sync` both run it. Matching itself is `hub.matching`; here come what a terminal has and the words.
"""

from typing import Final

import msgspec
from msgspec import structs

from hub.matching import Candidate, Match, Mismatch, compare_versions, match
from hub.store import Row
from protocol import limits
from protocol.device import DeviceInfo
from protocol.messages import MismatchRow, TargetRow

MISMATCHES_SHOWN: Final = 8


class Resolver:
    """Matches the targets of one request; equal devices are matched once."""

    def __init__(self, candidates: tuple[Candidate, ...], files: dict[bytes, Row], version: str) -> None:
        self._candidates = candidates
        self._files = files
        self._version = version
        self._matches: dict[DeviceInfo, Match] = {}

    def row(self, target: Row, installed: Row | None, reason_to_wait: str) -> TargetRow:
        """Return what this target would get."""
        found = self._match(msgspec.json.decode(target["device"], type=DeviceInfo))
        base = TargetRow(terminal=target["terminal_id"], name=target["name"], state="")
        if found.chosen is None:
            return _no_match(base, found)
        file = self._files[found.chosen.digest]
        base = structs.replace(
            base,
            version=found.chosen.version,
            installer_kind=found.chosen.kind,
            file_name=file["file_name"],
            digest=found.chosen.digest,
            size=found.chosen.size,
        )
        if installed is not None and installed["digest"] == found.chosen.digest:
            return structs.replace(
                base, state="same", reason="installed", detail=f"It has {installed['version']} already."
            )
        if installed is not None and not self._version and self._is_downgrade(installed["version"], file):
            return structs.replace(
                base,
                state="no_match",
                reason="downgrade",
                detail=f"It has {installed['version']}, newer than {file['file_version']}; "
                f"say --version {found.chosen.version} to go back.",
            )
        when = " It is sent when the device is back." if reason_to_wait == "offline" else ""
        return structs.replace(base, state="queued", reason=reason_to_wait, detail=_bounded(found.sentence + when))

    def _is_downgrade(self, installed: str, file: Row) -> bool:
        return compare_versions(installed, file["file_version"]) > 0

    def _match(self, device: DeviceInfo) -> Match:
        key = structs.replace(device, free_bytes=None)  # nothing of the match depends on it
        if key not in self._matches:
            self._matches[key] = match(key, self._candidates, version=self._version)
        return self._matches[key]


def _no_match(base: TargetRow, found: Match) -> TargetRow:
    nearest = found.rejections[0].mismatches[:MISMATCHES_SHOWN] if found.rejections else ()
    return structs.replace(
        base,
        state="no_match",
        reason="no-installer",
        detail=_bounded(found.sentence),
        mismatches=tuple(map(_mismatch_row, nearest)),
    )


def _mismatch_row(mismatch: Mismatch) -> MismatchRow:
    return MismatchRow(field=mismatch.field, wants=_bounded(mismatch.wants), has=_bounded(mismatch.has))


def _bounded(text: str) -> str:
    return text[: limits.TEXT_CHARACTERS]
