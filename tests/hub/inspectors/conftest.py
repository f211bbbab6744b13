"""Fixtures for the tests of every inspector."""

from pathlib import Path

import pytest

from tests.hub.inspectors.reading import Save


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write bytes to a file and return its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "installer"
        path.write_bytes(content)
        return path

    return write
