"""The demonstration does what it and the README promise, with real processes, and notices when something is not so."""

import re
import subprocess
import sys
import time
from pathlib import Path

from hub.demo import run
from tests.test_readme import IDENTIFIER, README

PROMISED_SECONDS = 20


def demonstrate() -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "hub", "demo"], capture_output=True, text=True, timeout=100)
    return result, time.monotonic() - began


def test_the_demonstration_shows_what_the_readme_shows() -> None:
    result, seconds = demonstrate()
    assert result.returncode == 0, result.stdout + result.stderr
    assert seconds < PROMISED_SECONDS
    opening = README.partition("```console\n")[2].partition("```")[0].splitlines()
    printed = IDENTIFIER.sub(r"\1-ID", result.stdout).splitlines()
    for line in opening:
        assert line == "..." or IDENTIFIER.sub(r"\1-ID", line) in printed, line
    for device, file in run.EXPECTED_FILE.items():
        row = next(line for line in result.stdout.splitlines() if re.match(rf"{device} +{re.escape(file)} ", line))
        assert " 1.0.0" in row, "the version is what the device's own package system says"
    assert "Hello from Lockstep 1.0.0, installed as a Debian package." in result.stdout
    assert "Hello from Lockstep 1.0.0, installed as a Python wheel." in result.stdout


def test_a_device_that_holds_another_file_fails_the_demonstration(tmp_path: Path) -> None:
    name = run.EXPECTED_FILE["tv"]
    digest = run.sha256_of(run.HERE / "installers" / name)
    held = tmp_path / "tv" / "installed" / digest
    held.parent.mkdir(parents=True)
    held.write_bytes(b"something else")
    try:
        run.check_held(tmp_path / "tv", "tv", name)
    except run.DemoError as error:
        assert name in str(error)
    else:
        raise AssertionError("a wrong file was not noticed")
