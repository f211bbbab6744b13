"""docs/protocol.md says what the code does: every message, field, type, limit, error code and close code is in it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from protocol import codec, life, limits, messages
from protocol.device import DeviceInfo
from protocol.life import State

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
ROOMS = ("protocol", "hub", "terminal")
CLOSE_CODES = (1000, 1001, 1008, 1009, 1012, 1013, 4000, 4001, 4002, 4003)
ROWS: tuple[type[msgspec.Struct], ...] = (
    DeviceInfo,
    messages.DeviceRow,
    messages.InstalledProgram,
    messages.ProgramRow,
    messages.MismatchRow,
    messages.RejectedRow,
    messages.ForecastRow,
    messages.TargetRow,
    messages.SyncRow,
    messages.InboxRow,
    messages.FindingRow,
    messages.PostureReport,
    messages.Chunking,
    messages.InstallerOffer,
    messages.Run,
)


# --- how the document writes a type -------------------------------------------------------------------------------


def number_words(value: float) -> str:
    """A number as it is; 2**53 and 2**60 as powers."""
    if value >= 2**53:
        return f"2^{int(value).bit_length() - 1}"
    return str(int(value)) if value == int(value) else str(value)


def count_words(minimum: int | None, maximum: int | None) -> str:
    if minimum is not None and minimum == maximum:
        return f" {minimum}"
    return f" {minimum or 0}-{maximum}" if maximum is not None else ""


def type_words(kind: inspect.Type) -> str:
    """The words with which the document's tables give a field's type and limits."""
    match kind:
        case inspect.VarTupleType():
            return f"list{count_words(kind.min_length, kind.max_length)} of {type_words(kind.item_type)}"
        case inspect.TupleType():
            return "list of " + " and ".join(type_words(item) for item in kind.item_types)
        case inspect.DictType():
            size = count_words(kind.min_length, kind.max_length)
            return f"map{size} of {type_words(kind.key_type)} to {type_words(kind.value_type)}"
        case inspect.UnionType():
            return " or ".join(type_words(one) for one in kind.types)
    return value_words(kind)


def value_words(kind: inspect.Type) -> str:
    match kind:
        case inspect.StrType():
            return "text" + count_words(kind.min_length, kind.max_length)
        case inspect.BytesType():
            return "binary" + count_words(kind.min_length, kind.max_length)
        case inspect.IntType():
            high = kind.lt - 1 if kind.lt is not None else kind.le
            return f"int {kind.ge}-{number_words(high or 0)}"
        case inspect.FloatType():
            low = number_words(kind.ge) if kind.ge is not None else f">{number_words(kind.gt or 0)}"
            return f"float {low}-{number_words(kind.le or 0)}"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in kind.values)
        case inspect.StructType():
            return kind.cls.__name__
    return {inspect.BoolType: "bool", inspect.NoneType: "nil"}[type(kind)]


def default_words(field: inspect.Field) -> str:
    if field.required:
        return "required"
    match field.default:
        case None:
            return "nil"
        case "" | b"" | ():
            return "empty"
        case bool():
            return str(field.default).lower()
        case value:
            return f"{value:g}" if isinstance(value, float) else str(value)


def field_rows(struct: type[msgspec.Struct]) -> list[str]:
    """The beginning of each row the document must have in the table of `struct`."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return [f"| `{one.encode_name}` | {type_words(one.type)} | {default_words(one)} |" for one in info.fields]


# --- what the document says ---------------------------------------------------------------------------------------


def section(document: str, title: str) -> str:
    """The text below the heading `title` up to the next heading of any level, or nothing."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", document, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def missing_rows(document: str, title: str, rows: list[str]) -> list[str]:
    lines = section(document, title).splitlines()
    return [row for row in rows if not any(line.startswith(row) for line in lines)]


def title_of(message_class: type[messages.Message]) -> str:
    return f"`{messages.kind_of(message_class)}`"


def wire_limits() -> dict[str, float]:
    units = {"KIB", "MIB", "GIB"}
    values = {name: value for name, value in vars(limits).items() if name.isupper() and name not in units}
    return values | {"ITEMS_IN_ONE_MESSAGE": codec.ITEMS_IN_ONE_MESSAGE}


def limit_row(name: str, value: float) -> str:
    return f"| `{name}` | {value:g} |" if isinstance(value, float) else f"| `{name}` | {value} |"


def words_in(node: ast.AST | None) -> Iterator[Any]:
    """The constants a value can be: in `"a" if late else "b"` both, but not those of the condition."""
    match node:
        case ast.Constant():
            yield node.value
        case ast.IfExp():
            yield from words_in(node.body)
            yield from words_in(node.orelse)
        case ast.BoolOp():
            for one in node.values:
                yield from words_in(one)


def codes_in(source: str) -> set[Any]:
    """What is given as `code=...`, set as `default_code` or named a close code in Python source."""
    codes: set[Any] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.keyword(arg="code"):
                codes.update(words_in(node.value))
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if name == "default_code" or "CLOSE" in name.split("_"):
                    codes.update(words_in(node.value))
    return {code for code in codes if isinstance(code, (str, int)) and code}  # CLOSE_SECONDS is a time


def codes_in_use() -> set[Any]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return set().union(*(codes_in(path.read_text(encoding="utf-8")) for path in files))


def undocumented_codes(document: str, codes: set[Any]) -> list[Any]:
    return sorted((code for code in codes if f"| `{code}` |" not in document), key=str)


# --- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_class", messages.CLASSES, ids=messages.kind_of)
def test_every_message_has_a_table_of_its_fields_with_type_limit_and_default(
    message_class: type[messages.Message],
) -> None:
    assert section(DOCUMENT, title_of(message_class))
    assert missing_rows(DOCUMENT, title_of(message_class), field_rows(message_class)) == []


@pytest.mark.parametrize("struct", ROWS)
def test_every_row_within_a_message_has_a_table_of_its_fields(struct: type[msgspec.Struct]) -> None:
    assert missing_rows(DOCUMENT, struct.__name__, field_rows(struct)) == []


def test_every_structure_a_message_can_hold_is_checked() -> None:
    held = {
        words for message_class in messages.CLASSES for words in re.findall(r"[A-Z]\w+", str(field_rows(message_class)))
    }
    held |= {words for struct in ROWS for words in re.findall(r"\bof ([A-Z]\w+)", str(field_rows(struct)))}
    held.add(messages.PostureReport.__name__)  # inside the bytes of a `posture`
    assert held == {struct.__name__ for struct in ROWS}


def test_every_limit_of_the_wire_is_in_the_table_with_its_value() -> None:
    rows = [limit_row(name, value) for name, value in wire_limits().items()]
    assert missing_rows(DOCUMENT, "Limits", rows) == []


def test_every_code_in_the_source_is_in_the_document() -> None:
    assert undocumented_codes(DOCUMENT, codes_in_use()) == []


def test_every_close_code_is_in_the_document() -> None:
    assert missing_rows(DOCUMENT, "Close codes", [f"| `{code}` |" for code in CLOSE_CODES]) == []


def test_every_state_of_a_delivery_is_in_the_document() -> None:
    assert missing_rows(DOCUMENT, "States of a delivery", [f"| `{state}` |" for state in State]) == []


def test_the_diagram_in_the_document_is_drawn_from_the_table() -> None:
    drawn = DOCUMENT.partition("```mermaid\n")[2].partition("\n```")[0]
    assert drawn == life.diagram()


def deadline_row(state: State) -> str:
    """The row a state's deadline must have: its length in the largest unit that fits a whole number of times."""
    deadline = life.DEADLINES[state]
    units = ((life.DAY, "day"), (life.HOUR, "hour"), (60.0, "minute"))
    unit, word = next((unit, word) for unit, word in units if deadline.seconds % unit == 0)
    count = int(deadline.seconds // unit)
    length = f"{count} {word}{'s' if count > 1 else ''}"
    return f"| `{state}` | {length} | {deadline.keeper} | `{deadline.then}`, reason `{deadline.reason}` |"


def test_every_deadline_is_in_the_document() -> None:
    assert missing_rows(DOCUMENT, "States of a delivery", [deadline_row(state) for state in life.DEADLINES]) == []


def test_every_reason_of_a_deadline_and_every_cause_that_passes_is_in_the_document() -> None:
    reasons = {deadline.reason for deadline in life.DEADLINES.values()} | life.PASSING
    assert undocumented_codes(DOCUMENT, reasons) == []


def test_the_map_names_every_file_of_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in ("protocol", "scanner", "hub", "terminal"):
        files = {path.name for path in (ROOT / room).glob("*.py") if not path.name.startswith("__")}
        assert sorted(name for name in files if f"`{name}`" not in page) == [], room


def test_every_test_that_a_page_names_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_a_field_a_limit_or_a_code_that_is_left_out_is_noticed() -> None:
    kind_row = field_rows(messages.Cancel)[1]
    assert missing_rows(DOCUMENT.replace(kind_row, "| `other` | text | required |"), "`cancel`", [kind_row]) == [
        kind_row
    ]
    wrong_value = limit_row("FRAME_BYTES", limits.FRAME_BYTES + 1)
    assert missing_rows(DOCUMENT, "Limits", [wrong_value]) == [wrong_value]
    assert section(DOCUMENT, "`no_such_message`") == ""
    assert undocumented_codes(DOCUMENT, {"no-such-code", 4999}) == [4999, "no-such-code"]


def test_codes_are_found_in_calls_defaults_and_constants() -> None:
    source = """
f(code="a" if late == "x" else "b")
f(code=code)
class E:
    default_code = "c"
CLOSE_REPLACED: int = 4000
"""
    assert codes_in(source) == {"a", "b", "c", 4000}
