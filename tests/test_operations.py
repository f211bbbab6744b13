"""docs/operations.md lists every setting with its default, every exit code and every option that gives a selector."""

import re
from pathlib import Path

from hub.config import Settings
from hub.publishing import publish
from protocol.device import DeviceInfo
from terminal.targets import ExitCode

DOCUMENT = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")


def default_words(value: object) -> str:
    if value in ("", ()):
        return "none"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def missing_settings(document: str) -> list[str]:
    defaults = dict(zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True))
    rows: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", document, re.MULTILINE):
        rows |= dict.fromkeys(re.findall(r"[a-z_]+", names), default.strip("` "))
    return [name for name, value in defaults.items() if rows.get(name) != default_words(value)]


def test_every_setting_is_in_the_document_with_its_default() -> None:
    assert missing_settings(DOCUMENT) == []


def test_every_exit_code_is_in_the_document() -> None:
    assert [code for code in ExitCode if f"\n| {code.value} |" not in DOCUMENT] == []


def test_every_option_of_publish_that_gives_a_fact_is_in_the_document() -> None:
    options = {option for parameter in publish.params for option in parameter.opts if option.startswith("--")}
    facts = options - {"--title", "--config", "--json"}
    assert len(facts) > 10
    assert [option for option in facts if f"`{option}`" not in DOCUMENT] == []


def test_the_device_file_shown_has_only_fields_there_are() -> None:
    shown = DOCUMENT.partition("```toml\n")[2].partition("[installers")[0]
    fields = re.findall(r"^([a-z_]+) =", shown, re.MULTILINE)
    assert len(fields) > 5
    assert set(fields) <= set(DeviceInfo.__struct_fields__)


def test_a_setting_that_is_left_out_is_noticed() -> None:
    assert missing_settings(DOCUMENT.replace("| `listen` |", "| `other` |")) == ["listen"]
    assert missing_settings(DOCUMENT.replace("| 2000 |", "| 2001 |")) == ["terminals_per_account"]
