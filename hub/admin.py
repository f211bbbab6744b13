"""The operator's commands over a 0600 Unix socket in the data folder.

One JSON line asks ({"command": ..., its arguments}), one JSON line answers ({"result": ...} or {"error": {"code",
"message", "hint", "usage"}}). What takes long sends lines of {"progress": [what, done, total]} before it. With no hub
running the same commands run in process, under the folder's lock.
"""

import asyncio
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from hub import accountadmin, joinadmin
from hub.app import Hub, open_hub
from hub.audit import read_head
from hub.backup import DATABASE_NAME, write_backup
from hub.catalogue import PublishOptions
from hub.config import Settings
from hub.resolver import match_device
from hub.scrub import Tell, keep_report, scrub, tell_nobody
from hub.verdicts import verdicts_page
from protocol.device import DeviceInfo
from protocol.errors import ConflictError, LockstepError, UnavailableError, UsageError

SOCKET_NAME: Final = "admin.sock"
# What is asked of a folder with no hub in it makes none.
_NEEDS_A_HUB: Final = (accountadmin.COMMANDS - {"account add"}) | joinadmin.COMMANDS | frozenset({
    "catalogue", "catalogue show", "catalogue yank", "catalogue restore", "catalogue retire", "catalogue channel",
    "catalogue alias", "match", "check", "backup", "audit", "audit head", "audit verify", "verdicts", "verdicts rescan",
})  # fmt: skip
# What moves deliveries first reads where they stand, as a hub does that starts.
_MOVES_DELIVERIES: Final = frozenset({"account disable", "account password", "device revoke", "verdicts rescan"})
_TOLD_EVERY_SECONDS: Final = 0.25
_LINE_BYTES: Final = 4 * 1024 * 1024
_ANSWER_BYTES: Final = 64 * 1024 * 1024  # of the hub, on the other side
_ASK_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 600.0


async def perform(hub: Hub, command: str, arguments: dict[str, Any], tell: Tell = tell_nobody) -> Any:
    """Carry out one command and return its result as JSON values; `tell` hears how far. Raises LockstepError."""
    match command:
        case "publish":
            options = msgspec.convert(arguments.get("options", {}), PublishOptions)
            return msgspec.to_builtins(await hub.catalogue.publish(Path(arguments["file"]), options))
        case "catalogue":
            return msgspec.to_builtins(await hub.catalogue.listing(arguments.get("after", "")))
        case (
            "catalogue show"
            | "catalogue yank"
            | "catalogue restore"
            | "catalogue retire"
            | "catalogue channel"
            | "catalogue alias"
        ):
            return await _catalogue(hub, command.removeprefix("catalogue "), arguments)
        case "match":
            return await _match(hub, arguments)
        case _ if command in joinadmin.COMMANDS:
            return await joinadmin.perform(hub, command, arguments)
        case _ if command in accountadmin.COMMANDS:
            return await accountadmin.perform(hub, command, arguments)
        case "check":
            return await _check(hub, tell)
        case "verdicts" | "verdicts rescan":
            return await _verdicts(hub, command, arguments)
        case "audit" | "audit head" | "audit verify":
            return await _audit(hub, command, arguments, tell)
        case "backup":
            folder, file, force = hub.settings.data_folder, Path(arguments["file"]), bool(arguments.get("force"))
            return msgspec.to_builtins(await write_backup(hub.store, hub.objects, folder, file, force=force, tell=tell))
        case _:
            raise UsageError(f"Unknown command {command!r}.")


async def _verdicts(hub: Hub, command: str, arguments: dict[str, Any]) -> Any:
    if command == "verdicts rescan":
        installers = await hub.rescans.again()
        if not hub.rescans.is_running:
            await hub.rescans.look(resting=False)
        return {"installers": installers, "done": not hub.rescans.is_running}
    after, withheld = bytes.fromhex(arguments.get("after", "")), bool(arguments.get("infected"))
    page = await hub.store.transaction(functools.partial(verdicts_page, after=after, withheld=withheld))
    return {"engines": await hub.rescans.engines(), "installers": page}


async def _catalogue(hub: Hub, command: str, arguments: dict[str, Any]) -> Any:
    program = arguments["program"]
    match command:
        case "show":
            return msgspec.to_builtins(await hub.catalogue.program(program))
        case "yank":
            return await hub.catalogue.yank(program, arguments["version"])
        case "restore":
            return await hub.catalogue.restore(program, arguments.get("version", ""))
        case "retire":
            return await hub.catalogue.retire(program)
        case "channel":
            return await hub.catalogue.move(program, arguments["version"], arguments["channel"])
        case _:
            remove, os_types = bool(arguments.get("remove")), tuple(arguments["os_types"])
            return await hub.catalogue.alias(program, arguments["package"], os_types, remove=remove)


async def _match(hub: Hub, arguments: dict[str, Any]) -> Any:
    device = msgspec.convert(arguments["device"], DeviceInfo)
    asked = arguments["program"], arguments.get("channel", ""), arguments.get("version", "")
    found = await hub.store.transaction(lambda transaction: match_device(transaction, device, *asked))
    told = msgspec.to_builtins(found, builtin_types=(bytes,))
    rejected = [_candidate(one["candidate"]) | {"mismatches": one["mismatches"]} for one in told.pop("rejections")]
    return told | {
        "chosen": _candidate(told["chosen"]),
        "runner_up": _candidate(told["runner_up"]),
        "rejected": rejected,
    }


def _candidate(told: dict[str, Any] | None) -> Any:
    """Return a candidate for a person or a program: its digest in hex, as everywhere in JSON."""
    return told and told | {"digest": told["digest"].hex()}


async def _check(hub: Hub, tell: Tell) -> Any:
    folder = hub.settings.data_folder
    report = await scrub(hub.store, hub.objects, folder, hub.audit, tell=tell)
    await asyncio.to_thread(keep_report, folder, report, time.time())
    return msgspec.to_builtins(report) | {"sound": report.is_sound}


async def _audit(hub: Hub, command: str, arguments: dict[str, Any], tell: Tell) -> Any:
    match command:
        case "audit":  # one page: a log is read in many short answers
            return msgspec.to_builtins(await hub.audit.page(int(arguments.get("after", 0))))
        case "audit head":
            head = await hub.audit.head()
            return msgspec.to_builtins(head) | {"digest": head.digest.hex(), "line": head.line()}
        case _:
            kept = read_head(arguments["head"]) if arguments.get("head") else None
            verified = await hub.audit.verify(kept, tell)
            return msgspec.to_builtins(verified) | {"whole": verified.is_whole}


async def ask(settings: Settings, command: str, arguments: dict[str, Any], tell: Tell = tell_nobody) -> Any:
    """Have the running hub perform a command, or take the folder's lock and do it here; `tell` hears how far it is.

    Raises UnavailableError where a folder with no hub in it is asked for what it cannot have.
    """
    folder = settings.data_folder
    answer = await _ask_running(folder, {"command": command, **arguments}, tell)
    if answer is None:
        if command in _NEEDS_A_HUB and not (folder / DATABASE_NAME).exists():
            raise UnavailableError(f"There is no hub's data in {folder}.", hint="Name the folder with --data.")
        async with open_hub(settings) as hub:
            if command in _MOVES_DELIVERIES:
                await hub.deliveries.start()
            return await perform(hub, command, arguments, tell)
    if "error" in answer:
        error = answer["error"]
        error_class = UsageError if error["usage"] else LockstepError  # the exit code is the same as in process
        raise error_class(error["message"], hint=error["hint"], code=error["code"])
    return answer["result"]


async def is_running(settings: Settings) -> bool:
    """Whether a hub runs on this folder and takes commands."""
    try:
        with _short_path(settings.data_folder) as path:
            _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def serve_admin(hub: Hub) -> AsyncIterator[None]:
    """Answer commands on the admin socket until the block is left."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(hub, reader, writer)
        finally:
            writer.close()

    folder = hub.settings.data_folder
    with _short_path(folder) as path:
        path.unlink(missing_ok=True)  # left by a hub that was killed; the lock says that none runs now
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(handle, path, limit=_LINE_BYTES)
        finally:
            os.umask(before)
    try:
        yield
    finally:
        server.close()
        (folder / SOCKET_NAME).unlink(missing_ok=True)


async def _answer(hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            request = json.loads(await reader.readline())
        answer = {"result": await perform(hub, request.pop("command"), request, _teller(writer))}
    except LockstepError as error:
        usage = isinstance(error, UsageError) and not isinstance(error, ConflictError)
        answer = {"error": {"code": error.code, "message": error.message, "hint": error.hint, "usage": usage}}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, TimeoutError, OSError) as error:
        answer = {"error": {"code": "usage", "message": f"Not a command: {error!r}", "hint": "", "usage": True}}
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    except (TimeoutError, OSError):
        pass  # the one who asked is gone; what was done is done


def _teller(writer: asyncio.StreamWriter) -> Tell:
    """Return what tells the one who asked how far it is, a few times a second; it ends the work when they are gone."""
    next_at = 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal next_at
        if writer.is_closing():
            raise ConnectionResetError
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + _TOLD_EVERY_SECONDS
            writer.write(json.dumps({"progress": [what, done, total]}).encode() + b"\n")

    return tell


async def _ask_running(folder: Path, request: dict[str, Any], tell: Tell) -> dict[str, Any] | None:
    """Return the running hub's answer, or None when no hub runs on this folder."""
    try:
        if not (folder / SOCKET_NAME).exists():
            return None
        with _short_path(folder) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=_ANSWER_BYTES)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except OSError as error:
        raise UnavailableError(f"The running hub cannot be asked: {error.strerror}.") from None
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = {}
        while not answer.keys() & {"result", "error"}:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = json.loads(await reader.readline())
            if "progress" in answer:
                tell(*answer["progress"])
    except (TimeoutError, OSError, ValueError):
        raise UnavailableError("The running hub did not answer.", hint="See its log.") from None
    finally:
        writer.close()
    return answer


@contextmanager
def _short_path(folder: Path) -> Iterator[Path]:
    """Give a path of the socket that fits the 108 bytes of `sun_path` (unix(7)), whatever the folder's own length."""
    path = folder / SOCKET_NAME
    if len(os.fsencode(path)) < 100:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}") / SOCKET_NAME
    finally:
        os.close(descriptor)
