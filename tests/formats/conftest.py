"""Fixtures of the format proofs: files built once in a run; the table at its end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats import ledger
from tests.formats.built import Recipe

Build = Callable[[Recipe], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return the file of a recipe, built the first time it is asked for; skip the test where its tools are missing."""
    files: dict[str, Path] = {}

    def made(recipe: Recipe) -> Path:
        if recipe.lacks():
            pytest.skip(f"{recipe.name} needs {', '.join(recipe.lacks())}")
        if recipe.name not in files:
            files[recipe.name] = recipe.make(tmp_path_factory.mktemp("built"))
        return files[recipe.name]

    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with the table."""
    for line in ledger.lines():
        terminalreporter.write_line(line)
