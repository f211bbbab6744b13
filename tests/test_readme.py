"""The README's transcripts are true: each command is run as it stands and has to print what the README shows.

Identifiers and keys are random, so any of the same kind will do; a line `...` stands for any lines; the port is
replaced by a free one. A command that ends in `&` runs until the test ends, and is waited for until it has printed what
it should.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
IDENTIFIER = re.compile(r"\b([a-z])-[2-9a-hjkmnp-z]{10}\b|\b(sha256):[0-9a-f]{64}\b")
COMMAND_SECONDS = 60


def transcript(heading: str) -> list[tuple[str, list[str]]]:
    """The (command, shown lines) of the first console block below a heading."""
    block = README.partition(f"## {heading}\n")[2].partition("```console\n")[2].partition("```")[0]
    steps: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


def matches(shown: list[str], printed: str) -> bool:
    """Whether `printed` is what is shown, whatever the identifiers and whatever a `...` stands for."""
    parts = [".*" if line == "..." else re.escape(IDENTIFIER.sub(r"\1\2-ID", line)) for line in shown]
    pattern = "\n".join(parts) + ("\n" if shown else "")
    return re.fullmatch(pattern, IDENTIFIER.sub(r"\1\2-ID", printed), re.DOTALL) is not None


def read_lines(stream: IO[str], count: int) -> str:
    return "".join(stream.readline() for _ in range(count))


class Shell:
    """Runs the transcript's commands in a folder of their own; background ones are stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.background: list[subprocess.Popen[str]] = []
        self.environment = {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "250",
        }

    def run(self, command: str, shown: list[str]) -> str:
        process = subprocess.Popen(
            ["bash", "-c", command.removesuffix("&")],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if command.endswith("&") else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if command.endswith("&"):
            self.background.append(process)
            assert process.stdout is not None
            return read_lines(process.stdout, len(shown))
        return process.communicate(timeout=COMMAND_SECONDS)[0]

    def stop(self) -> None:
        for process in reversed(self.background):
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=COMMAND_SECONDS)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shutil.copytree(ROOT / "hub" / "demo", tmp_path / "hub" / "demo")
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_transcript_by_hand_runs_as_it_stands(shell: Shell) -> None:
    port = str(free_port())
    steps = transcript("By hand")
    assert len(steps) > 10, "the README has its transcript"
    for command, shown in steps:
        printed = shell.run(_at_port(command, port), shown)
        assert matches([line.replace("8765", port) for line in shown], printed), f"$ {command}\n{printed}"


def _at_port(command: str, port: str) -> str:
    """Two hubs on one machine need two ports; the README's is the default one."""
    return command.replace("8765", port).replace("hub serve", f"hub serve --listen 127.0.0.1:{port}")


def test_a_line_that_is_not_printed_is_noticed() -> None:
    assert matches(["Sync s-2u4g7yanjc is accepted.", "...", "1 done."], "Sync s-cccccccccc is accepted.\nx\n1 done.\n")
    assert not matches(["1 target: 1 done."], "1 target: 1 failed.\n")
    assert not matches(["car t-2u4g7yanjc"], "car s-2u4g7yanjc\n")


def test_the_readme_names_the_commands_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_links_to_what_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
