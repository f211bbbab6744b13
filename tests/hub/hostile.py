"""What a broken or hostile reader might do: `python -m tests.hub.hostile NAME` does it inside the worker's limits.

Each returns facts when it got away with it, so a test that expects a refusal cannot pass by accident.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hub.inspectors import Inspected, told_of
from hub.inspectors.worker import run_limited
from hub.matching import Selector
from hub.records import InstallerFacts

FACTS = InstallerFacts(
    package_name="hostile", title="", version="1", release="1", kind="other", selector=Selector(os_types=("linux",))
)
VICTIM = Path("/etc/hostname")


def got_away() -> Inspected:
    return Inspected(facts=FACTS)


def memory() -> Inspected:
    return Inspected(facts=FACTS) if bytearray(600 << 20) else got_away()


def many_lists() -> Inspected:
    kept: list[list[int]] = []
    while True:
        kept.append([0] * 50_000)


def endless_loop() -> Inspected:
    while True:
        pass


def long_sleep() -> Inspected:
    signal.pause()
    return got_away()


def crash() -> Inspected:
    os.kill(os.getpid(), signal.SIGSEGV)
    return got_away()


def deep_recursion() -> Inspected:
    return deep_recursion()


def open_file() -> Inspected:
    os.close(os.open("/", os.O_RDONLY))
    return got_away()


def open_socket() -> Inspected:
    socket.socket().close()
    return got_away()


def make_pipe() -> Inspected:
    os.pipe()
    return got_away()


def start_program() -> Inspected:
    subprocess.run(["/bin/true"], check=True)
    return got_away()


def fork() -> Inspected:
    if os.fork() == 0:
        os._exit(0)
    return got_away()


def write_file() -> Inspected:
    os.write(0, b"x")
    return got_away()


def raise_limits() -> Inspected:
    import resource

    for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU):
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return got_away()


def become_root() -> Inspected:
    os.setuid(0)
    return got_away()


def say_who() -> Inspected:
    os._exit(0 if 0 not in (os.getuid(), os.geteuid(), os.getgid(), *os.getgroups()) else 1)


def rare_codec() -> Inspected:
    b"x".decode("koi8-r")
    return got_away()


def babble() -> Inspected:
    while True:
        os.write(1, b"[" * 65_536)


def nonsense() -> Inspected:
    os.write(1, b'{"found": 7}')
    os._exit(0)


def silence() -> Inspected:
    os._exit(0)


def absurd_facts() -> Inspected:
    return Inspected(facts=InstallerFacts(**{**{f: getattr(FACTS, f) for f in FACTS.__struct_fields__}, "title": "\n"}))


DEEDS: dict[str, Callable[[], Inspected]] = {
    one.__name__: one
    for one in (
        got_away, memory, many_lists, endless_loop, long_sleep, crash, deep_recursion, open_file, open_socket,
        make_pipe, start_program, fork, write_file, raise_limits, become_root, say_who, rare_codec, babble,
        nonsense, silence, absurd_facts,
    )
}  # fmt: skip


def main() -> None:
    def deed() -> Inspected:
        with told_of("file"):
            return DEEDS[sys.argv[1]]()

    sys.stdout.buffer.write(run_limited(deed))


if __name__ == "__main__":
    main()
