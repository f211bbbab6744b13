"""`lockstep-hub publish` and `catalogue` as people type them: what they print, their exit codes, and their JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hub.catalogue import PROGRAMS_PER_PAGE
from hub.cli import main
from hub.publishing import _given
from hub.store import Store, Transaction
from tests.harness.installers import make_installer
from tests.hub.test_cli import ROOT, hub


class Operator:
    """Someone at a shell, with one data folder."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "hub"

    def run(self, *arguments: str) -> Result:
        environment = {"LOCKSTEP_HUB_DATA": str(self.data), "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"}
        return CliRunner().invoke(main, arguments, env=environment)

    def says(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.output

    def is_refused(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code in (1, 2) and "Traceback" not in result.output, result.output
        return result.stderr


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def lines_of(text: str) -> list[list[str]]:
    return [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]


def test_a_program_is_shown_by_release_and_platform(operator: Operator, tmp_path: Path) -> None:
    arm = make_installer(tmp_path, "deb", architecture="arm64", size=2_000)
    both = make_installer(tmp_path, "deb", version="2.0", size=2_000)
    operator.says("publish", str(arm), str(make_installer(tmp_path, "apk", size=2_000)), "--program", "hello")
    operator.says("publish", str(both), "--channel", "beta")
    operator.says("catalogue", "yank", "hello", "1.0")
    shown = lines_of(operator.says("catalogue", "show", "hello"))
    assert [[cell.strip() for cell in line] for line in shown] == [
        ["hello: hello for tests"],
        ["known as org.example.hello on android"],
        ["RELEASE", "android", "linux", "linux arm64"],
        ["2.0 (beta)", "-", "deb 20.2 KiB", "-"],
        ["1.0 (yanked)", "apk 2.7 KiB", "-", "deb 20.2 KiB"],
    ]
    found = json.loads(operator.says("catalogue", "show", "hello", "--json"))
    assert [(one["version"], one["channel"], one["yanked"]) for one in found["releases"]] == [
        ("2.0", "beta", False),
        ("1.0", "stable", True),
    ]
    assert [len(one["installers"]) for one in found["releases"]] == [1, 2]
    assert found["aliases"] == [
        {"os": "android", "package": "org.example.hello"},
        {"os": "linux", "package": "hello"},
    ]
    listed = operator.says("catalogue")
    assert "2.0 (beta)" in listed and "1.0 (yanked)" in listed


def test_each_change_says_what_is_so_now_and_whether_it_was_so_before(operator: Operator, tmp_path: Path) -> None:
    operator.says("publish", str(make_installer(tmp_path, "deb")))
    for arguments, words in (
        (("yank", "hello", "1.0"), "hello 1.0 is yanked"),
        (("restore", "hello", "1.0"), "hello 1.0 is on offer"),
        (("channel", "hello", "1.0", "beta"), "hello 1.0 is in the channel beta"),
        (("alias", "hello", "org.hello", "--os", "ios"), "org.hello means hello on ios"),
        (("retire", "hello"), "hello is retired"),
        (("restore", "hello"), "hello is on offer"),
    ):
        assert operator.says("catalogue", *arguments) == f"{words}.\n"
        assert operator.says("catalogue", *arguments) == f"{words} already.\n"
    gone = ("catalogue", "alias", "hello", "org.hello", "--os", "ios", "--remove")
    assert operator.says(*gone) == "org.hello no longer means hello on ios.\n"
    assert "no alias" in operator.is_refused(*gone)


def test_what_is_yanked_or_retired_is_said_with_the_way_back_when_it_is_published_again(
    operator: Operator, tmp_path: Path
) -> None:
    file = str(make_installer(tmp_path, "deb"))
    operator.says("publish", file)
    operator.says("catalogue", "yank", "hello", "1.0")
    assert "`lockstep-hub catalogue restore hello 1.0`" in operator.says("publish", file)
    operator.says("catalogue", "retire", "hello")
    assert "`lockstep-hub catalogue restore hello`" in operator.says("publish", file)
    assert "(retired:" in operator.says("catalogue", "show", "hello")
    newer = str(make_installer(tmp_path, "deb", version="2.0"))
    assert "`lockstep-hub catalogue restore hello`" in operator.is_refused("publish", newer)


def test_options_before_the_subcommand_count_for_it(operator: Operator, tmp_path: Path) -> None:
    other = tmp_path / "other"
    operator.says("publish", str(make_installer(tmp_path, "deb")), "--data", str(other))
    assert "hello" in operator.says("catalogue", "--data", str(other), "show", "hello")
    assert json.loads(operator.says("catalogue", "--json", "--data", str(other), "show", "hello"))["retired"] is False


def test_no_command_about_a_program_makes_a_folder_of_a_hub(operator: Operator) -> None:
    for arguments in (("show", "x"), ("yank", "x", "1"), ("restore", "x"), ("retire", "x"), ("channel", "x", "1", "b")):
        assert "no hub's data" in operator.is_refused("catalogue", *arguments)
    assert not operator.data.exists()


def test_a_mistyped_name_is_answered_with_the_near_ones_and_exit_code_2(tmp_path: Path) -> None:
    hub(tmp_path, "publish", str(make_installer(tmp_path, "deb")))
    refused = hub(tmp_path, "catalogue", "retire", "helo", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["error"] == {
        "code": "unknown-program",
        "message": "The catalogue has no program 'helo'.",
        "hint": "Did you mean hello?",
    }


async def test_a_catalogue_of_several_pages_is_listed_whole(tmp_path: Path) -> None:
    count = PROGRAMS_PER_PAGE * 2 + 1
    (tmp_path / "hub").mkdir()
    store = await Store.open(tmp_path / "hub" / "hub.db")
    await store.transaction(lambda transaction: add_installers(transaction, count))
    await store.close()
    rows = json.loads(hub(tmp_path, "catalogue", "--json").stdout)
    assert [row["program"] for row in rows] == [f"p{number:05}" for number in range(count)]


async def add_installers(transaction: Transaction, count: int) -> None:
    for number in range(count):
        program, digest = f"p{number:05}", number.to_bytes(32)
        await transaction.rows("add_object", digest=digest, size=1, stored_size=1, chunks=1, now=0)
        await transaction.rows("add_program", program_id=program, title=program, now=0)
        release = {"program_id": program, "version": "1.0"}
        await transaction.rows("add_release", **release, version_key="1", channel="stable", now=0)
        await transaction.rows(
            "add_installer", **release, digest=digest, kind="deb", package_name=program, file_version="1.0",
            file_name="x.deb", size=1, now=0, verdict="clean", finding="", facts=(
                b'{"package_name":"x","title":"x","version":"1.0","release":"1.0","kind":"deb",'
                b'"selector":{"os_types":["linux"]}}'
            ),
        )  # fmt: skip


def test_files_or_a_folder_have_to_be_named(operator: Operator, tmp_path: Path) -> None:
    for arguments in ((), ("x.deb", "--watch", str(tmp_path)), ("--watch", str(tmp_path / "none"))):
        assert "folder" in operator.is_refused("publish", *arguments)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ({"os_version": "12"}, {"os_version_minimum": "12", "os_version_maximum": "12.*"}),
        ({"os_version": "4.0.1"}, {"os_version_minimum": "4.0.1", "os_version_maximum": "4.*"}),
        ({"os_version": "12-14"}, {"os_version_minimum": "12", "os_version_maximum": "14"}),
        ({"os_version": "-14"}, {"os_version_maximum": "14"}),
        ({"api_level": "24"}, {"api_level_minimum": 24}),
        ({"api_level": "24-33"}, {"api_level_minimum": 24, "api_level_maximum": 33}),
        ({"screen_inches": "10"}, {"screen_inches_minimum": 10.0, "screen_inches_maximum": 10.0}),
        ({"resolution": "1280x720-"}, {"resolution_minimum": [1280, 720]}),
        ({"without_feature": ("touch",), "model": ()}, {"features_forbidden": ["touch"]}),
        ({"architecture": ("amd64", "aarch64")}, {"architectures": ["x86_64", "arm64"]}),
        (
            {"os": ("android 4.0.1",)},
            {"os_types": ["android"], "os_version_minimum": "4.0.1", "os_version_maximum": "4.*"},
        ),
    ],
)
def test_a_bare_value_and_a_range_mean_what_the_sidecar_means_by_them(
    option: dict[str, Any], given: dict[str, Any]
) -> None:
    assert _given(option) == given


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--os-version", "foo", '"12-14"'),
        ("--os-version", "", '"12-14"'),
        ("--os-version", "1..2", '"12-14"'),
        ("--density", "9" * 23, "dots per inch"),
        ("--api-level", "x", "an API level"),
        ("--resolution", "1920", "1920x1080"),
        ("--model", "two\nlines", "printable"),
        ("--model", "\x1b[31m", "printable"),
        ("--architecture", "z80", "x86_64"),
        ("--os", "lunux", "Did you mean linux?"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_its_option_with_what_is_wanted(
    option: str, value: str, wanted: str, operator: Operator, tmp_path: Path
) -> None:
    result = operator.run("publish", str(make_installer(tmp_path, "deb")), option, value)
    assert result.exit_code == 2
    assert f"{option} is {value!r}; wanted is " in result.stderr and wanted in result.stderr
    assert not operator.data.exists()


def test_what_no_device_could_meet_and_a_name_of_two_lines_are_refused(operator: Operator, tmp_path: Path) -> None:
    installer = make_installer(tmp_path, "deb")
    both = operator.is_refused("publish", str(installer), "--feature", "nfc", "--without-feature", "nfc")
    assert "'nfc' was both required and forbidden" in both
    renamed = installer.rename(tmp_path / "a\x1b[31m\nb.deb")
    for command in ("publish", "inspect"):
        assert "'a\\x1b[31m\\nb.deb' is not one printable line. Rename the file." in operator.is_refused(
            command, str(renamed)
        )


def test_a_file_is_corrected_with_one_option_and_says_so(operator: Operator, tmp_path: Path) -> None:
    file = str(make_installer(tmp_path, "deb"))
    operator.says("publish", file, "--form-factor", "car")
    assert "publish --correct" in operator.is_refused("publish", file, "--form-factor", "tv")
    assert operator.says("publish", "--correct", file, "--form-factor", "tv").startswith(
        "corrected hello 1.0 (deb, for "
    )
    [again] = json.loads(operator.says("publish", "--correct", file, "--json"))
    assert (again["new"], again["corrected"], "tv" in again["fits"]) == (False, True, False)
    assert operator.says("publish", "--correct", file).startswith("was published before:")


# Root may read anything unless it lets go of that.
_AS_ANYONE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("command", ["publish", "inspect"])
def test_of_several_files_one_that_may_not_be_read_is_refused_by_itself(command: str, tmp_path: Path) -> None:
    closed, sound = make_installer(tmp_path, "deb", "closed"), make_installer(tmp_path, "deb")
    closed.chmod(0)
    done = subprocess.run(
        [*_AS_ANYONE, sys.executable, "-m", "hub", command, str(closed), str(sound), "--json"],
        env={**os.environ, "LOCKSTEP_HUB_DATA": str(tmp_path / "hub"), "LOCKSTEP_HUB_DISK_RESERVE_BYTES": "0"},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    first, second = json.loads(done.stdout)
    assert (done.returncode, first["error"]["code"], second["program"]) == (1, "bad-file", "hello")
    assert "Permission denied" in first["error"]["message"]
