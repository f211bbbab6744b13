"""The counts that a run of the safety proofs ends with."""

import pytest

from tests.safety import ledger


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with the counts."""
    for line in ledger.lines():
        terminalreporter.write_line(line)
