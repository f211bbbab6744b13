"""`python -m tests.safety.unfair_hub FILE HOW serve ...`: a probed hub whose full doorway turns every newcomer away."""

import runpy

from hub.doorway import Doorway

if __name__ == "__main__":
    Doorway._who_makes_way = lambda self, newcomer, now: None  # type: ignore[method-assign]
    runpy.run_module("tests.safety.probed_hub", run_name="__main__")
