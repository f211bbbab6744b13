"""The hub's session while a terminal uploads, as a value: whose turn it is, what crosses with what, deadlines."""

from typing import Any

import pytest
from msgspec import structs

from hub import session as brain
from protocol import chunks, limits, messages
from protocol.errors import RefusedError
from protocol.messages import Chunks, ManifestPage, Publish, Published, Refused, Run, Want, Withdraw
from tests.hub.test_session import OBJECT, OTHER_OBJECT, feed, hear, opened, said

MANIFEST = chunks.Manifest.of([chunks.pack_chunk(b"x" * 10)[0]])
PAGE = ManifestPage(object=OBJECT, page=0, entries=MANIFEST.data)
FRAME = Chunks(object=OBJECT, first=0, count=1, data=b"x" * 10)
FETCHED = brain.UploadFetched("u-1", 0, 0, (Run(0, 1),), complete=False)
WHOLE = brain.UploadFetched("u-1", 1, 10, (), complete=True)


def publish(upload: str = "u-1", **changes: Any) -> Publish:
    request = Publish(
        id=3, upload=upload, object=OBJECT, size=10, chunks=1, stored_size=10, pages=1, manifest=MANIFEST.digest,
        chunking=chunks.chunking_for(10), file_name="hello.deb",
    )  # fmt: skip
    return structs.replace(request, **changes)


def published(upload: str = "u-1") -> Published:
    return Published(
        upload=upload, program="hello", title="Hello", version="1.0", installer_kind="deb", digest=OBJECT, new=True,
        fits="linux",
    )  # fmt: skip


def accepted(now: float = 0.0) -> brain.Session:
    session = opened(receives=False)
    feed(session, brain.Ticked(), now=1.0)  # what changed in its syncs is looked up once after the login
    [begin] = hear(session, publish(), now=now)
    assert begin == brain.BeginUpload(publish())
    assert said(feed(session, brain.UploadBegun(publish()), now=now)) == [messages.PublishAccepted(re=3, upload="u-1")]
    return session


def fetching(now: float = 0.0) -> brain.Session:
    session = accepted(now)
    assert hear(session, PAGE, now=now) == [brain.TakePage(PAGE)]
    assert feed(session, brain.UploadPageTaken("u-1", last=True), now=now) == [brain.PrepareUpload()]
    assert said(feed(session, FETCHED, now=now)) == [Want(delivery="u-1", runs=(Run(0, 1),))]
    return session


def test_an_upload_goes_from_its_request_to_the_catalogue() -> None:
    session = fetching()
    assert hear(session, FRAME) == [brain.TakeFrame(FRAME)]
    progress, publishes = feed(session, WHOLE)
    assert progress == brain.Send(messages.Progress(delivery="u-1", frames=1, done=10))
    assert publishes == brain.PublishUpload()
    assert feed(session, brain.UploadPublished(published())) == [brain.EndUpload(), brain.Send(published())]
    assert hear(session, publish("u-2")) == [brain.BeginUpload(publish("u-2"))], "the next one may begin"


def test_one_that_is_refused_at_once_leaves_room_for_the_next() -> None:
    session = opened()
    hear(session, publish())
    refusal = RefusedError("No.", code="not-allowed")
    [error] = said(feed(session, brain.UploadBegun(publish(), refusal)))
    assert isinstance(error, messages.Error) and (error.code, error.re) == ("not-allowed", 3)
    assert hear(session, publish("u-2")) == [brain.BeginUpload(publish("u-2"))]


def test_while_one_comes_another_is_busy() -> None:
    session = fetching()
    [error] = said(hear(session, publish("u-2", id=4, object=OTHER_OBJECT)))
    assert isinstance(error, messages.Error) and (error.code, error.re) == ("busy", 4)
    assert hear(session, FRAME) == [brain.TakeFrame(FRAME)]


@pytest.mark.parametrize("message", [PAGE, FRAME], ids=["page", "frame"])
def test_what_belongs_to_an_upload_that_has_ended_is_passed_over(message: ManifestPage | Chunks) -> None:
    session = fetching()
    feed(session, brain.UploadFailed("u-1", "bad-file", "It is damaged."))
    assert hear(session, message) == []


@pytest.mark.parametrize("message", [PAGE, FRAME], ids=["page", "frame"])
def test_what_comes_before_the_request_is_accepted_ends_the_connection(message: ManifestPage | Chunks) -> None:
    session = opened()
    hear(session, publish())
    assert any(isinstance(action, brain.Close) for action in hear(session, message))


def test_a_page_where_a_frame_is_due_is_refused_and_the_connection_goes_on() -> None:
    session = fetching()
    [end, word] = hear(session, PAGE)
    assert end == brain.EndUpload()
    assert isinstance(word, brain.Send) and isinstance(word.message, Refused)
    assert word.message.reason == "bad-transfer"
    assert hear(session, publish("u-2")) == [brain.BeginUpload(publish("u-2"))]


def test_an_upload_given_up_ends_and_what_work_on_it_brings_later_is_passed_over() -> None:
    session = accepted()
    hear(session, PAGE)
    feed(session, brain.UploadPageTaken("u-1", last=True))
    assert hear(session, Withdraw(delivery="u-1")) == [brain.EndUpload()]
    assert feed(session, FETCHED, brain.UploadFailed("u-1", "abandoned", "Given up.")) == []
    assert hear(session, Withdraw(delivery="u-1"), Withdraw(delivery="u-unknown")) == []


def test_what_is_being_published_cannot_be_given_up_any_more() -> None:
    session = fetching()
    feed(session, WHOLE)
    assert hear(session, Withdraw(delivery="u-1")) == []
    assert said(feed(session, brain.UploadPublished(published()))) == [published()]


def test_only_a_terminal_that_has_something_to_send_has_a_deadline_and_each_part_sets_it_anew() -> None:
    idle = limits.UPLOAD_IDLE_SECONDS
    session = accepted(now=10.0)
    assert session.deadline == 10.0 + idle
    hear(session, PAGE, now=20.0)
    feed(session, brain.UploadPageTaken("u-1", last=True), now=20.0)
    assert session.deadline is None, "the hub reads what it has, however long that takes"
    feed(session, FETCHED, now=500.0)
    assert session.deadline == 500.0 + idle
    hear(session, FRAME, now=550.0)
    assert session.deadline == 550.0 + idle
    assert feed(session, brain.Ticked(), now=549.0 + idle) == []
    [_, refused] = feed(session, brain.Ticked(), now=550.0 + idle)
    assert isinstance(refused, brain.Send) and isinstance(refused.message, Refused)
    assert (refused.message.reason, session.deadline) == ("no-progress", None)
