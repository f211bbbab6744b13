"""Which targets there are, and whether they can be fuzzed on this machine."""

import importlib.util
from typing import Final

TARGETS: Final = {"codec": "tests.safety.fuzz_codec", "handshake": "tests.safety.fuzz_handshake"}


def why_not() -> str:
    """Why this machine cannot fuzz, empty when it can."""
    if importlib.util.find_spec("atheris") is None:
        return "atheris is not here: it is built for Linux on x86_64 and Python up to 3.13 only."
    return ""
