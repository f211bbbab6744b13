"""What the tests of every inspector do: save bytes as a file, run an independent reader, expect a refusal in words."""

import io
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.inspectors import inspect
from protocol.errors import BadFileError

DEMO = Path(__file__).parents[3] / "hub" / "demo" / "installers"
Save = Callable[[bytes], Path]


def run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    """Return what a program prints, or fail with what it says is wrong."""
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(path: Path, name: str = "") -> BadFileError:
    """Return the refusal of a file, which names it, is a sentence, and says what to do."""
    with pytest.raises(BadFileError) as caught:
        inspect(path, name)
    assert caught.value.message.startswith(f"{name or path.name}: ")
    assert caught.value.message.endswith(".")
    assert caught.value.hint
    return caught.value


def a_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of `members`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
