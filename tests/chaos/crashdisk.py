"""A disk that may lose power: what was synced is there, of the rest any part.

The model is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014) at its weakest: bytes
are safe once their file was synced, names once their folder was; until then each 512 or 4,096 byte piece of a write,
each change of a size and each change of a name may have reached the disk or not, in any order. Only two things are
never torn: a rename, and what one name went through, which keeps its order. Pure: time is the number of a step.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.chaos.tracing import Change, Create, Rename, Step, Sync, Truncate, Unlink, Write

Survivors = Literal["nothing", "everything", "names", "chance"]
ALL_SURVIVORS: Final[tuple[Survivors, ...]] = ("nothing", "everything", "names", "chance")
_PIECES_BYTES: Final = (512, 4096)
_NEAR_STEPS: Final = 3
_CUTS_NEAR_SYNCS: Final = 0.8


@dataclass(eq=False, slots=True)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, Write | Truncate]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Folder:
    now: dict[str, "_Node"] = field(default_factory=dict)
    synced: dict[str, "_Node"] = field(default_factory=dict)


_Node = _File | _Folder
_Place = tuple[_Folder, str]


@dataclass(frozen=True, slots=True)
class _Naming:
    """One change of names: `node` gets the place `after`, the place `before` is given up. Never half of it."""

    step: int
    before: _Place | None
    after: _Place | None
    node: _Node

    @property
    def places(self) -> list[_Place]:
        return [place for place in (self.before, self.after) if place is not None]

    def apply(self) -> None:
        if self.before is not None:
            self.before[0].synced.pop(self.before[1], None)
        if self.after is not None:
            self.after[0].synced[self.after[1]] = self.node


class CrashDisk:
    """The folder `root` while a program works in it. Feed it `change`; `image` writes what a power cut would leave."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._top = _Folder()
        self._namings: list[_Naming] = []

    def change(self, step: int, change: Change) -> None:
        """Take the change that was step number `step`."""
        match change:
            case Create(path, is_folder):
                self._name(_Naming(step, None, self._place(path), _Folder() if is_folder else _File()))
            case Rename(before, after):
                self._name(_Naming(step, self._place(before), self._place(after), self._node(before)))
            case Unlink(path):
                self._name(_Naming(step, self._place(path), None, self._node(path)))
            case Write(path) | Truncate(path):
                file = self._node(path)
                assert isinstance(file, _File)
                file.waiting.append((step, change))
            case Sync(path, began):
                self._sync(self._node(path), began)

    def image(self, folder: Path, survivors: Survivors, chance: random.Random) -> None:
        """Write what is left when the power goes now into `folder`, which must not exist."""
        names = _copy(self._top)
        if survivors in ("everything", "names"):
            kept = list(self._namings)
        elif survivors == "chance":
            kept = _with_what_they_need(self._namings, {one for one in self._namings if chance.random() < 0.5})
        else:
            kept = []
        _write_folder(folder, _renamed(names, self._top, kept), survivors, chance)

    def _place(self, path: str) -> _Place:
        parts = Path(path).relative_to(self._root).parts
        folder: _Node = self._top
        for part in parts[:-1]:
            assert isinstance(folder, _Folder)
            folder = folder.now[part]
        assert isinstance(folder, _Folder)
        return folder, parts[-1]

    def _node(self, path: str) -> _Node:
        if path == self._root:
            return self._top
        folder, name = self._place(path)
        return folder.now[name]

    def _name(self, naming: _Naming) -> None:
        if naming.before is not None:
            del naming.before[0].now[naming.before[1]]
        if naming.after is not None:
            naming.after[0].now[naming.after[1]] = naming.node
        self._namings.append(naming)

    def _sync(self, node: _Node, began: int) -> None:
        if isinstance(node, _File):
            for step, change in node.waiting:
                if step < began:
                    _apply(node.synced, change)
            node.waiting = [(step, change) for step, change in node.waiting if step >= began]
            return
        chosen = {one for one in self._namings if one.step < began and any(place[0] is node for place in one.places)}
        for naming in _with_what_they_need(self._namings, chosen):
            naming.apply()
            self._namings.remove(naming)


def _with_what_they_need(namings: list[_Naming], chosen: set[_Naming]) -> list[_Naming]:
    """Return `chosen` in order, with every earlier change of the same names."""
    places: set[tuple[int, str]] = set()
    kept = []
    for naming in reversed(namings):
        own = {(id(folder), name) for folder, name in naming.places}
        if naming in chosen or own & places:
            places |= own
            kept.append(naming)
    return kept[::-1]


def _copy(top: _Folder) -> dict[int, dict[str, _Node]]:
    """Return the synced names of every folder that can be reached now or then, by the folder's id."""
    names: dict[int, dict[str, _Node]] = {}
    folders = [top]
    while folders:
        folder = folders.pop()
        names[id(folder)] = dict(folder.synced)
        inside = {*folder.synced.values(), *folder.now.values()}
        folders.extend(node for node in inside if isinstance(node, _Folder) and id(node) not in names)
    return names


def _renamed(names: dict[int, dict[str, _Node]], top: _Folder, kept: Iterable[_Naming]) -> _Folder:
    """Return the tree of `names` with the changes `kept`; its folders are new, its files those of the disk."""
    for naming in kept:
        if naming.before is not None:
            names.setdefault(id(naming.before[0]), {}).pop(naming.before[1], None)
        if naming.after is not None:
            names.setdefault(id(naming.after[0]), {})[naming.after[1]] = naming.node

    def build(folder: _Folder) -> _Folder:
        inside = names.get(id(folder), {}).items()
        return _Folder(now={name: build(node) if isinstance(node, _Folder) else node for name, node in inside})

    return build(top)


def _write_folder(path: Path, folder: _Folder, survivors: Survivors, chance: random.Random) -> None:
    path.mkdir(mode=0o700, parents=True)
    for name, node in sorted(folder.now.items()):
        if isinstance(node, _Folder):
            _write_folder(path / name, node, survivors, chance)
        elif name.endswith("-shm"):
            (path / name).write_bytes(chance.randbytes(32_768))  # shared memory: whatever was there
        else:
            (path / name).write_bytes(_left(node, survivors, chance))


def _left(file: _File, survivors: Survivors, chance: random.Random) -> bytes:
    left = bytearray(file.synced)
    piece_bytes = chance.choice(_PIECES_BYTES)
    share = chance.random()
    for _, change in file.waiting:
        if survivors == "everything":
            _apply(left, change)
        elif survivors == "chance":
            _apply_some(left, change, piece_bytes, share, chance)
        elif survivors == "names" and chance.random() < 0.5:
            _apply_size(left, change)  # the size of a file is kept with its name, its bytes are not: zeros
    return bytes(left)


def _apply(data: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del data[change.size :]
        data.extend(bytes(change.size - len(data)))
        return
    _apply_size(data, change)
    data[change.offset : change.offset + len(change.data)] = change.data


def _apply_size(data: bytearray, change: Write | Truncate) -> None:
    end = change.size if isinstance(change, Truncate) else change.offset + len(change.data)
    data.extend(bytes(max(0, end - len(data))))


def _apply_some(
    data: bytearray, change: Write | Truncate, piece_bytes: int, share: float, chance: random.Random
) -> None:
    if isinstance(change, Truncate):
        if chance.random() < share:
            _apply(data, change)
        return
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, start - start % piece_bytes + piece_bytes)
        if chance.random() < share:
            piece = change.data[start - change.offset : stop - change.offset]
            _apply(data, Write(change.path, start, piece))
        start = stop


def cut_points(steps: list[Step], cuts: int, chance: random.Random) -> list[int]:
    """Choose where to cut: before a step, most of them near a sync or a rename."""
    near = [number for number, step in enumerate(steps) if isinstance(step, (Sync, Rename))]
    chosen: set[int] = set()
    while len(chosen) < min(cuts, len(steps)):
        if chance.random() < _CUTS_NEAR_SYNCS:
            point = chance.choice(near) + chance.randint(-_NEAR_STEPS, _NEAR_STEPS)
        else:
            point = chance.randrange(len(steps))
        chosen.add(min(max(point, 0), len(steps)))
    return sorted(chosen)
