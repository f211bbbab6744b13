"""`python -m terminal` is `lockstep-terminal`."""

from terminal.cli import main

main()
