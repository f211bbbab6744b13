"""Requests: what an open terminal may ask, and the messages that answer it."""

import msgspec

from hub.accounts import Accounts
from hub.enrolling import Enrolling
from hub.presence import Presence
from hub.records import Terminal
from hub.revocation import Revocation
from hub.syncs import Accepted, Syncs
from protocol import codec, messages
from protocol.errors import ProtocolError
from protocol.messages import Message


class Requests:
    """Answers the requests of terminals that are logged in."""

    def __init__(
        self, accounts: Accounts, syncs: Syncs, presence: Presence, revocation: Revocation, enrolling: Enrolling
    ) -> None:
        self._enrolling = enrolling
        self._revocation = revocation
        self._accounts = accounts
        self._syncs = syncs
        self._presence = presence

    async def answer(self, me: Terminal, request: Message) -> tuple[tuple[Message, ...], Terminal | None]:
        """Carry `request` out for `me`; return the answer, and the terminal as it is now if it changed.

        Raises UsageError, UnknownNameError, ConflictError or RefusedError; the caller sends them as `error`.
        """
        if isinstance(request, messages.DeviceUpdate):
            changed = await self._accounts.update(me, request.name, request.device)
            self._presence.update(me.account_id, self._accounts.device_row(changed, online=False))
            # Not the connection number as it is now: if a newer login has come, this socket must not pass for it.
            renamed = msgspec.structs.replace(changed, connection=me.connection, receives=me.receives)
            return (messages.Done(re=request.id),), renamed
        return await self._ask(me, request), None

    async def _ask(self, me: Terminal, request: Message) -> tuple[Message, ...]:
        match request:
            case messages.Programs():
                programs, more = await self._syncs.programs(me, request)
                return (messages.ProgramsResult(re=request.id, programs=tuple(programs), more=more),)
            case messages.Plan():
                targets = await self._syncs.plan(me, request)
                return _paged(messages.PlanResult(re=request.id, program=request.program, targets=targets))
            case messages.Sync():
                return _accepted(request.id, await self._syncs.accept(me, request))
            case messages.Undo():
                return _accepted(request.id, await self._syncs.undo(me, request))
            case messages.SyncRequest(id=request_id, sync=sync):
                return _paged(
                    messages.SyncResult(re=request_id, sync=sync, targets=await self._syncs.targets(me, sync))
                )
            case messages.Cancel(id=request_id, sync=sync):
                cancelled, too_late = await self._syncs.cancel(me, sync)
                return (messages.CancelResult(re=request_id, sync=sync, cancelled=cancelled, too_late=too_late),)
            case messages.History(id=request_id, before=before):
                syncs, more = await self._syncs.history(me, before)
                return (messages.HistoryResult(re=request_id, syncs=tuple(syncs), more=more),)
            case messages.PairingRequest():
                return (await self._enrolling.look(me, request),)
            case messages.Approve():
                await self._enrolling.approve(me, request)
                return (messages.Done(re=request.id),)
            case messages.Revoke(id=request_id, terminal=terminal):
                await self._revocation.revoke_by(me, terminal)
                return (messages.Done(re=request_id),)
            case _:
                raise ProtocolError(f"A {messages.kind_of(request)} is not a request.")


def _accepted(request: int, accepted: Accepted) -> tuple[Message, ...]:
    return _paged(
        messages.SyncAccepted(re=request, sync=accepted.sync, program=accepted.program, targets=accepted.targets)
    )


def _paged(
    answer: messages.PlanResult | messages.SyncAccepted | messages.SyncResult,
) -> tuple[Message, ...]:
    """Split an answer whose targets do not fit one message."""
    pages = codec.pages(answer.targets)
    return tuple(
        msgspec.structs.replace(answer, targets=page, more=number < len(pages))
        for number, page in enumerate(pages, start=1)
    )
