"""One libFuzzer process: `python -m tests.safety.fuzz_target TARGET [libFuzzer options] [FOLDER or FILE...]`.

A file alone runs just that input, to look at a crash. Atheris has to see the modules before anybody else imports them,
which is why this is a program of its own. `--planted` plants a fault, so that a test can see that one is found.
"""

import importlib
import sys

import atheris

from tests.safety.fuzz_targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer ends the process: 0 after the executions asked for, anything else at a crash."""
    name, *options = sys.argv[1:]
    planted = "--planted" in options
    options = [option for option in options if option != "--planted"]
    with atheris.instrument_imports(include=["protocol", "hub.session", "terminal.session", "terminal.devicelist"]):
        target = importlib.import_module(TARGETS[name])
    target.prepare()

    def feed(data: bytes) -> None:
        if planted and len(data) > 2 and data[1:3] == b"\x82\xa4":
            raise ValueError("a planted fault")
        target.feed(data)

    def mutate_bytes(data: bytes, longest: int) -> bytes:
        return bytes(atheris.Mutate(data, longest))  # looked up at each call: `Fuzz` puts the real one in its place

    atheris.Setup([name, *options], feed, custom_mutator=target.mutate_with(mutate_bytes))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
