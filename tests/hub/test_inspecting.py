"""`lockstep-hub inspect` as a person runs it: no hub, the facts in a few lines, or as JSON."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from hub.inspectors.sidecar import SUFFIX

APK = Path(__file__).parents[2] / "hub" / "demo" / "installers" / "hello-lockstep-tv-1.0.0.apk"


def run_inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hub", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_facts_of_a_file_are_shown_in_the_words_of_the_catalogue() -> None:
    done = run_inspect(APK)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.replace(" id ", "_id ").splitlines() if "  " in line)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows["program_id"] == "org.lockstep.hello"
    assert rows["kind"] == "apk"
    assert rows["features"] == "android.software.leanback"
    assert "OS range          API level 24 or more" in done.stdout
    assert rows["SHA-256"] == hashlib.sha256(APK.read_bytes()).hexdigest()


def test_several_files_are_shown_as_json_with_their_sidecars_and_one_refused_file_is_exit_code_1(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.run").write_bytes(b"#!/bin/sh\n")
    (tmp_path / f"notes.run{SUFFIX}").write_text('program = "notes"\nversion = "2.1"\nos = "linux"\nchannel = "beta"\n')
    (tmp_path / "other.run").write_bytes(b"#!/bin/sh\n")
    done = run_inspect(tmp_path / "notes.run", tmp_path / "other.run", "--json")
    notes, other = json.loads(done.stdout)
    assert done.returncode == 1
    assert (notes["program"], notes["facts"]["version"], notes["channel"], notes["size"]) == (
        "notes",
        "2.1",
        "beta",
        10,
    )
    assert other["error"]["code"] == "bad-file"
    assert f"other.run{SUFFIX} beside it" in done.stderr


def test_whoever_reads_the_output_may_go_before_its_end() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hub", "inspect", str(APK)]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")
