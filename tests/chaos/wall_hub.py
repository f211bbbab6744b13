"""`python -m tests.chaos.wall_hub serve ...`: the hub with its hub time taken from the wall clock.

The control of the clock steps: a hub that counts deadlines so gives up what waits when its clock jumps, and a harness
that does not see it sees nothing.
"""

import time
from types import SimpleNamespace

import hub.clock
from hub.cli import main

if __name__ == "__main__":
    vars(hub.clock)["time"] = SimpleNamespace(monotonic=time.time)
    main()
