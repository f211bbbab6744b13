"""What one world under chaos was seen to do, from outside."""

from dataclasses import dataclass, field

from protocol import limits


@dataclass(slots=True)
class Ledger:
    """What was seen from outside: syncs accepted and ended, resumes, and every breach in words."""

    accepted: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # well, as the initiator was told
    cancels: int = 0
    overtaken: int = 0
    resumes: int = 0
    twice_bytes: int = 0
    largest_twice_bytes: int = 0  # of one resume
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    over_window: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)  # processes that ended though nobody killed them

    @classmethod
    def sum(cls, ledgers: list["Ledger"]) -> "Ledger":
        """Return all of them in one."""
        total = cls(largest_twice_bytes=max(one.largest_twice_bytes for one in ledgers))
        for one in ledgers:
            for name in ("accepted", "ended", "lost", "wrong", "over_window", "died"):
                getattr(total, name).extend(getattr(one, name))
            for name in ("cancels", "overtaken", "resumes", "twice_bytes"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
        return total

    @property
    def line(self) -> str:
        """For people."""
        mean_bytes = self.twice_bytes / max(self.resumes, 1)
        return (
            f"{len(self.accepted)} syncs accepted, of them {self.cancels} cancelled soon, {self.overtaken} overtaken; "
            f"{len(self.ended)} ended well; {self.resumes} resumes, with {mean_bytes / limits.KIB:.0f} KiB each "
            f"beyond the object (largest {self.largest_twice_bytes / limits.KIB:.0f} KiB)"
        )
