"""`python -m hub` is `lockstep-hub`."""

from hub.cli import main

main()
