"""The codec: every message survives the way there and back, and no bytes whatever do more than raise ProtocolError."""

import math
import time
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from msgspec import inspect

from protocol import codec, limits, messages, vectors
from protocol.errors import ProtocolError
from protocol.messages import Message

EXAMPLES = {messages.kind_of(message): message for _, message in vectors.examples()}
KINDS = sorted(messages.BY_KIND)


# --- any message --------------------------------------------------------------------------------------------------


def containers(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.VarTupleType():
            items = values(kind.item_type)
            return st.lists(items, min_size=kind.min_length or 0, max_size=min(kind.max_length or 3, 3)).map(tuple)
        case inspect.TupleType():
            return st.tuples(*(values(item) for item in kind.item_types))
        case inspect.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of([values(one) for one in kind.types])
        case inspect.StructType():
            return st.builds(kind.cls, **{field.name: values(field.type) for field in kind.fields})
    raise AssertionError(f"no strategy for {kind}")


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Any value a field of this msgspec type may have; lists are kept short."""
    match kind:
        case inspect.StrType():
            return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or 20, 20))
        case inspect.BytesType():
            low = kind.min_length or 0
            return st.binary(min_size=low, max_size=max(low, min(kind.max_length or 40, 40)))
        case inspect.IntType():
            return st.integers(kind.ge, kind.lt - 1 if kind.lt is not None else kind.le)
        case inspect.FloatType():
            return st.floats(kind.ge or 0, kind.le, exclude_min=kind.gt is not None)
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    return containers(kind)


def any_message() -> st.SearchStrategy[Message]:
    return st.sampled_from(messages.CLASSES).flatmap(lambda one: values(inspect.type_info(one)))


def fields_of(message: Message) -> dict[str, Any]:
    """A message as the values msgpack packs."""
    fields: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return fields


def packed(fields: Any) -> bytes:
    data: bytes = msgpack.packb(fields)
    return data


def refusal(data: bytes | str, **options: int) -> str:
    """The code with which `data` is refused."""
    with pytest.raises(ProtocolError) as caught:
        codec.decode(data, **options)
    assert len(caught.value.message) <= limits.TEXT_CHARACTERS, "an error must fit the message that tells of it"
    return caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_comes_back_as_it_was_sent(kind: str) -> None:
    @settings(max_examples=20, deadline=None)
    @given(values(inspect.type_info(messages.BY_KIND[kind])))
    def comes_back(message: Message) -> None:
        assert codec.decode(codec.encode(message)) == message

    comes_back()


def test_there_is_an_example_of_every_kind() -> None:
    assert sorted(EXAMPLES) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_fields_nobody_knows_are_ignored(kind: str) -> None:
    data = packed(fields_of(EXAMPLES[kind]) | {"later": [{"x": None}, b"1", 2.5]})
    assert codec.decode(data) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_lacks_a_required_field_is_refused(kind: str) -> None:
    required = {field.encode_name for field in msgspec.structs.fields(messages.BY_KIND[kind]) if field.required}
    for name in required:
        fields = fields_of(EXAMPLES[kind])
        del fields[name]
        assert refusal(packed(fields)) == "bad-field"


def test_defaults_are_left_out() -> None:
    assert set(fields_of(messages.Plan(id=1, program="p"))) == {"kind", "id", "program"}


# --- any bytes ----------------------------------------------------------------------------------------------------

ANY_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def read(data: bytes) -> None:
    """Read as a peer's bytes; a message that is taken must also be one that can be sent."""
    try:
        message = codec.decode(data)
    except ProtocolError:
        return
    assert codec.decode(codec.encode(message)) == message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(data: bytes) -> None:
    read(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_messages_with_bytes_changed_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    mutated = bytearray(codec.encode(data.draw(any_message())))
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(mutated))
    read(bytes(mutated[: data.draw(st.integers(0, len(mutated)))]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_valid_messages_with_a_field_replaced_raise_nothing_but_protocol_errors(kind: str, data: st.DataObject) -> None:
    fields = fields_of(EXAMPLES[kind])
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(ANY_VALUE)
    read(packed(fields))


# --- limits -------------------------------------------------------------------------------------------------------


def smallest(kind: inspect.Type) -> Any:
    """The least value a field of this type may have, as msgpack packs it."""
    match kind:
        case inspect.StrType():
            return "x" * (kind.min_length or 0)
        case inspect.BytesType():
            return bytes(kind.min_length or 0)
        case inspect.IntType():
            return kind.ge
        case inspect.FloatType():
            return 1.0
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.BoolType():
            return False
        case inspect.StructType(array_like=True):
            return [smallest(field.type) for field in kind.fields]
        case inspect.StructType():
            return {field.encode_name: smallest(field.type) for field in kind.fields if field.required}
        case inspect.VarTupleType():
            return [smallest(kind.item_type)] * (kind.min_length or 0)
    return {}


def at_and_past_length(kind: inspect.StrType | inspect.BytesType, unit: Any) -> tuple[list[Any], list[Any]]:
    least, most = kind.min_length or 0, kind.max_length
    at, past = [unit * least], [unit * (least - 1)] * (least > 0)
    if most is not None:
        at, past = [*at, unit * most], [*past, unit * (most + 1)]
    return at, past


def at_and_past(kind: inspect.Type) -> tuple[list[Any], list[Any]]:
    """Values at the limits of a type, which are taken, and just past them, which are not."""
    match kind:
        case inspect.StrType():
            return at_and_past_length(kind, "\U0001f600")  # four bytes each in UTF-8
        case inspect.BytesType():
            return at_and_past_length(kind, b"x")
        case inspect.IntType():
            high = kind.lt - 1 if kind.lt is not None else kind.le
            assert kind.ge is not None and high is not None, "every integer has bounds"
            return [kind.ge, high], [kind.ge - 1, high + 1, True, None, "1", float(high)]
        case inspect.FloatType():
            low = math.ulp(0.0) if kind.gt is not None else 0.0
            return [low, kind.le], [-1.0, math.nextafter(kind.le or 0, math.inf), math.nan, math.inf, -math.inf, "1"]
        case inspect.VarTupleType(max_length=int(most)):
            item = smallest(kind.item_type)
            return [[item] * most], [[item] * (most + 1)] + [[]] * bool(kind.min_length)
        case inspect.DictType():
            return [{str(n): 1 for n in range(limits.MAP_ITEMS)}], [{str(n): 1 for n in range(limits.MAP_ITEMS + 1)}]
        case inspect.UnionType():
            at, past = at_and_past(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
            return [*at, None], [one for one in past if one is not None]
        case inspect.StructType(array_like=False):
            return edges_within(kind)
    return [], [{"not": "that"}]


def edges_within(struct: inspect.StructType) -> tuple[list[Any], list[Any]]:
    base, taken, refused = smallest(struct), [], []
    for field in struct.fields:
        at, past = at_and_past(field.type)
        taken += [base | {field.encode_name: value} for value in at]
        refused += [base | {field.encode_name: value} for value in past]
    return taken, refused


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_taken_at_its_limits_and_refused_past_them(kind: str) -> None:
    for field in (info := message_info(kind)).fields:
        at, past = at_and_past(field.type)
        for value in at:
            codec.decode(packed(smallest(info) | {"kind": kind, field.encode_name: value}))
        for value in past:
            assert refusal(packed(smallest(info) | {"kind": kind, field.encode_name: value})) in {
                "bad-field",
                "bad-msgpack",
            }


@pytest.mark.parametrize(
    "row",
    [messages.DeviceRow, messages.InstalledProgram, messages.ProgramRow, messages.TargetRow, messages.MismatchRow,
     messages.SyncRow],
)  # fmt: skip
def test_every_field_of_a_row_is_taken_at_its_limits_and_refused_past_them(row: type[msgspec.Struct]) -> None:
    taken, refused = edges_within(inspect.type_info(row))  # type: ignore[arg-type]
    for fields in taken:
        msgspec.convert(fields, row, builtin_types=(bytes,))
    for fields in refused:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(fields, row, builtin_types=(bytes,))


def message_info(kind: str) -> inspect.StructType:
    info = inspect.type_info(messages.BY_KIND[kind])
    assert isinstance(info, inspect.StructType)
    return info


def test_a_message_is_taken_at_its_size_limit_and_refused_past_it() -> None:
    data = codec.encode(messages.Done(re=1))
    assert codec.decode(data, limit_bytes=len(data)) == messages.Done(re=1)
    assert refusal(data, limit_bytes=len(data) - 1) == "too-large"
    assert refusal(bytes(limits.MESSAGE_BYTES + 1)) == "too-large"


def test_a_full_frame_and_a_full_manifest_page_fit_a_message() -> None:
    digest = bytes(limits.DIGEST_BYTES)
    frame = messages.Chunks(object=digest, first=0, count=1, data=bytes(limits.FRAME_BYTES))
    page_bytes = limits.MANIFEST_PAGE_ENTRIES * limits.MANIFEST_ENTRY_BYTES
    page = messages.ManifestPage(object=digest, page=0, entries=bytes(page_bytes))
    assert codec.decode(codec.encode(frame)) == frame
    assert codec.decode(codec.encode(page)) == page


# --- hostile ------------------------------------------------------------------------------------------------------


def with_unknown(value: bytes) -> bytes:
    """A `done` message with one more field, whose value is the msgpack bytes `value`."""
    return b"\x83\xa4kind\xa4done\xa2re\x01\xa1x" + value


def nested(depth: int) -> bytes:
    return b"\x91" * (depth - 1) + b"\x90"


def test_nesting_is_taken_at_its_limit_and_refused_past_it() -> None:
    inside_the_message = limits.NESTING_DEPTH - 1
    assert codec.decode(with_unknown(nested(inside_the_message))) == messages.Done(re=1)
    assert refusal(with_unknown(nested(inside_the_message + 1))) == "bad-msgpack"


def test_a_list_is_taken_at_its_limit_and_refused_past_it() -> None:
    def many(count: int) -> bytes:
        return with_unknown(b"\xdc" + count.to_bytes(2, "big") + b"\xc0" * count)

    assert codec.decode(many(limits.LIST_ITEMS)) == messages.Done(re=1)
    assert refusal(many(limits.LIST_ITEMS + 1)) == "bad-msgpack"


def test_a_text_in_an_unknown_field_is_taken_at_its_limit_and_refused_past_it() -> None:
    assert codec.decode(with_unknown(packed("x" * limits.STRING_BYTES))) == messages.Done(re=1)
    assert refusal(with_unknown(packed("x" * (limits.STRING_BYTES + 1)))) == "bad-msgpack"


@pytest.mark.parametrize(
    "value",
    [
        b"\xc7\x01\x00\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc1",
        b"\xa1\xff",
        b"",
    ],
    ids=[
        "ext",
        "timestamp",
        "huge ext",
        "huge list",
        "huge map",
        "huge bin",
        "huge str",
        "unused byte",
        "bad UTF-8",
        "cut",
    ],
)
def test_values_that_are_no_part_of_the_protocol_are_refused_even_in_unknown_fields(value: bytes) -> None:
    assert refusal(with_unknown(value)) == "bad-msgpack"


@pytest.mark.parametrize("key", [b"\x01", b"\xc0", b"\x90", b"\xc2"], ids=["int", "nil", "list", "bool"])
def test_keys_other_than_text_are_refused(key: bytes) -> None:
    assert refusal(b"\x83\xa4kind\xa4done\xa2re\x01" + key + b"\x01") == "bad-msgpack"


def test_the_last_of_two_equal_keys_counts() -> None:
    assert codec.decode(b"\x83\xa4kind\xa4done\xa2re\x01\xa2re\x02") == messages.Done(re=2)
    assert refusal(b"\x83\xa4kind\xa4done\xa2re\x01\xa4kind\xa5other") == "unknown-kind"


def test_text_never_passes_for_binary_nor_binary_for_text() -> None:
    base64_of_zeros = "A" * 43 + "="
    assert refusal(packed({"kind": "received", "object": base64_of_zeros})) == "bad-field"
    assert refusal(packed({"kind": "cancel", "id": 1, "sync": b"s"})) == "bad-field"


def test_a_text_message_is_refused() -> None:
    assert refusal('{"kind": "done"}') == "text-message"


def test_an_error_never_repeats_what_the_peer_sent() -> None:
    secret = "x' - at '" * 200
    fields = fields_of(EXAMPLES["login"]) | {"device": {"model": "m", "os_type": secret}}
    with pytest.raises(ProtocolError) as caught:
        codec.decode(packed(fields))
    assert secret[:9] not in str(caught.value)


def full_tree(leaf: bytes, count: int) -> bytes:
    """`count` leaves in lists of 4,096, those in one list."""
    group = b"\xdc\x10\x00" + leaf * limits.LIST_ITEMS
    groups = min(count // limits.LIST_ITEMS, (limits.MESSAGE_BYTES - 40) // len(group))
    return with_unknown(b"\xdc" + groups.to_bytes(2, "big") + group * groups)


HOSTILE = {
    "empty lists": full_tree(b"\x90", 2**20),
    "empty maps": full_tree(b"\x80", 2**20),
    "lists of lists": full_tree(b"\x91\x90", 2**20),
    "floats": full_tree(b"\xca\x00\x00\x00\x00", 2**20),
    "nils": full_tree(b"\xc0", 2**20),
    "maps of one": full_tree(b"\x81\xa1k\x90", 2**20),
    "deep": with_unknown(b"\x91" * (limits.MESSAGE_BYTES - 40) + b"\x90"),
    "deep maps": with_unknown(b"\x81\xa1k" * 170_000 + b"\x90"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_half_a_mebibyte_made_to_hurt_costs_little_time_and_memory(name: str) -> None:
    data = HOSTILE[name]
    assert len(data) <= limits.MESSAGE_BYTES
    started = time.process_time()
    read(data)
    assert time.process_time() - started < 1.0
    tracemalloc.start()
    read(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * limits.MIB
