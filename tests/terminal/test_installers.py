"""Installers with the real tools: dpkg and pip install, upgrade, refuse and fail here as they do on a device."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest

from protocol.device import InstallerKind
from protocol.errors import BadFileError, RefusedError, UnavailableError, UsageError
from terminal.installers import InstallResult, InstallTask, Runner, RunnerSettings, build_runners
from terminal.installers.apk import SimulatedRunner
from terminal.installers.debarchive import check_paths
from terminal.installers.programs import run_program, runner_lock

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not on this machine")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY = 65534


def runner_for(folder: Path, kind: InstallerKind, settings: RunnerSettings | None = None) -> Runner:
    return build_runners(folder, (kind,), {kind: settings} if settings else {})[kind]


def task_for(
    kind: InstallerKind,
    file: Path,
    *,
    package_name: str = "hello-lockstep",
    version: str = "1.0",
    facts: Mapping[str, str] | None = None,
) -> InstallTask:
    digest_hex = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "0" * 64
    return InstallTask("delivery-1", "hello", package_name, version, kind, file, digest_hex, facts or {})


def build_deb(
    folder: Path,
    version: str,
    *,
    package_name: str = "hello-lockstep",
    depends: str = "",
    control_files: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    tree = Path(tempfile.mkdtemp(dir=folder))
    tree.chmod(0o755)
    fields = f"Package: {package_name}\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.com>\n"
    needs = f"Depends: {depends}\n" if depends else ""
    (tree / "DEBIAN").mkdir(mode=0o755)
    (tree / "DEBIAN/control").write_text(f"{fields}{needs}Description: says hello\n")
    for name, text in (control_files or {}).items():
        (tree / "DEBIAN" / name).write_text(text)
        (tree / "DEBIAN" / name).chmod(0o755)
    for name, target in (links or {}).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    for name, text in ({"opt/hello/version": version} if files is None else files).items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    file = folder / f"{package_name}_{version}_{tree.name}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return file


def build_wheel(folder: Path, version: str, *, requires: str = "") -> Path:
    """Build a wheel and keep it as the terminal does: under a name that is not the wheel's own."""
    information = f"hello_lockstep-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        "hello_lockstep.py": f"VERSION = {version!r}\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: Hello.Lockstep\nVersion: {version}\n{needs}",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{information}/RECORD"))
    file = folder / f"object-{version}"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(name, text)
    return file


def wheel_task(file: Path, version: str) -> InstallTask:
    facts = {"file_name": f"hello_lockstep-{version}-py3-none-any.whl"}
    return task_for("wheel", file, package_name="Hello.Lockstep", version=version, facts=facts)


def assert_installed(result: InstallResult, version: str) -> None:
    assert (result.ok, result.reason, result.installed_version) == (True, "installed", version), result.detail


def assert_failed(result: InstallResult, reason: str, *words: str) -> None:
    assert (result.ok, result.reason) == (False, reason), result.detail
    for word in words:
        assert word in result.detail
    assert len(result.detail) <= 1_000


# --- debs ---------------------------------------------------------------------------------------------------------


@needs_dpkg
async def test_a_deb_is_installed_upgraded_and_downgraded_in_a_private_root(tmp_path: Path) -> None:
    runner = runner_for(tmp_path / "terminal", "deb")
    assert await runner.installed_version("hello-lockstep") is None
    for version in ("1.0", "2.0-1~beta", "1.0"):
        result = await runner.install(task_for("deb", build_deb(tmp_path, version), version=version))
        assert_installed(result, version)
        assert (tmp_path / "terminal/deb-root/opt/hello/version").read_text() == version
        assert await runner.installed_version("hello-lockstep") == version
    assert (tmp_path / "terminal/deb-root/var/log/dpkg.log").exists()
    assert (tmp_path / "terminal/deb-root").stat().st_mode & 0o777 == 0o700


@needs_dpkg
async def test_a_deb_with_dependencies_is_installed_and_says_they_were_not_checked(tmp_path: Path) -> None:
    file = build_deb(tmp_path, "1.0", depends="libc6 (>= 2.36), not-there")
    result = await runner_for(tmp_path, "deb").install(task_for("deb", file))
    assert_installed(result, "1.0")
    assert "dependencies not checked (libc6 (>= 2.36), not-there)" in result.detail


@needs_dpkg
@pytest.mark.parametrize("script", ["preinst", "postinst", "prerm", "postrm", "config"])
async def test_a_deb_with_a_maintainer_script_is_refused_and_the_script_never_runs(tmp_path: Path, script: str) -> None:
    witness = tmp_path / "the-script-ran"
    file = build_deb(tmp_path, "1.0", control_files={script: f"#!/bin/sh\ntouch {witness}\n"})
    runner = runner_for(tmp_path, "deb")
    assert_failed(await runner.install(task_for("deb", file)), "maintainer-scripts", script)
    assert not witness.exists()
    assert await runner.installed_version("hello-lockstep") is None


@needs_dpkg
async def test_a_damaged_deb_fails_with_the_words_of_dpkg(tmp_path: Path) -> None:
    file = tmp_path / "damaged.deb"
    file.write_bytes(build_deb(tmp_path, "1.0").read_bytes()[:300])
    result = await runner_for(tmp_path, "deb").install(task_for("deb", file))
    assert_failed(result, "runner-failed", "dpkg-deb", "damaged.deb")


@needs_dpkg
async def test_a_deb_that_conflicts_with_an_installed_one_fails_with_the_words_of_dpkg(tmp_path: Path) -> None:
    runner = runner_for(tmp_path, "deb")
    first = build_deb(tmp_path, "1.0", package_name="other-lockstep")
    assert_installed(await runner.install(task_for("deb", first, package_name="other-lockstep")), "1.0")
    result = await runner.install(task_for("deb", build_deb(tmp_path, "1.0")))
    assert_failed(result, "runner-failed", "trying to overwrite", "other-lockstep")


@needs_dpkg
async def test_a_deb_of_another_package_than_announced_is_not_confirmed(tmp_path: Path) -> None:
    file = build_deb(tmp_path, "1.0")
    result = await runner_for(tmp_path, "deb").install(task_for("deb", file, package_name="announced"))
    assert_failed(result, "not-confirmed", "announced 1.0", "no such package")


@needs_dpkg
async def test_a_deb_of_another_version_than_announced_is_not_confirmed(tmp_path: Path) -> None:
    result = await runner_for(tmp_path, "deb").install(task_for("deb", build_deb(tmp_path, "1.0"), version="2.0"))
    assert_failed(result, "not-confirmed", "2.0", "version 1.0")
    assert result.installed_version == "1.0"


@needs_dpkg
async def test_a_deb_cannot_write_through_a_link_it_brings_itself(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    file = build_deb_that_writes_through_its_link(tmp_path, outside)
    result = await runner_for(tmp_path / "terminal", "deb").install(task_for("deb", file))
    assert_failed(result, "unsafe-path", "opt/x", "symbolic link")
    assert list(outside.iterdir()) == []


def build_deb_that_writes_through_its_link(folder: Path, outside: Path) -> Path:
    control = (
        "Package: hello-lockstep\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: x\n"
    )
    (folder / "control").write_text(control)
    (folder / "payload").write_text("escaped")
    (folder / "link").symlink_to(outside)
    (folder / "debian-binary").write_text("2.0\n")
    tar: list[str | Path] = ["tar", "-C", folder, "--format=gnu"]
    renames = ["--transform", "s,^payload,./opt/x/payload,", "--transform", "s,^link$,./opt/x,"]
    subprocess.run([*tar, "-cf", folder / "control.tar", "./control"], check=True)
    subprocess.run([*tar, "-cf", folder / "data.tar", *renames, "link", "payload"], check=True)
    write_ar(folder / "evil.deb", [folder / "debian-binary", folder / "control.tar", folder / "data.tar"])
    return folder / "evil.deb"


def write_ar(file: Path, parts: list[Path]) -> None:
    with file.open("wb") as archive:
        archive.write(b"!<arch>\n")
        for part in parts:
            data = part.read_bytes()
            archive.write(f"{part.name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            archive.write(data + b"\n" * (len(data) % 2))


@needs_dpkg
async def test_a_deb_cannot_write_through_a_link_an_earlier_one_left(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    runner = runner_for(tmp_path / "terminal", "deb")
    first = build_deb(tmp_path, "1.0", package_name="first", files={}, links={"opt/x": str(outside)})
    assert_installed(await runner.install(task_for("deb", first, package_name="first")), "1.0")
    second = build_deb(tmp_path, "1.0", files={"opt/x/payload": "escaped"})
    assert_failed(await runner.install(task_for("deb", second)), "unsafe-path", str(outside))
    assert list(outside.iterdir()) == []


@needs_dpkg
async def test_a_configuration_file_cannot_be_written_through_a_link_an_earlier_deb_left(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("of the host")
    runner = runner_for(tmp_path / "terminal", "deb")
    climbing = os.path.relpath(outside, tmp_path / "terminal/deb-root/etc")
    first = build_deb(tmp_path, "1.0", package_name="first", files={}, links={"etc/hello.conf": climbing})
    assert_installed(await runner.install(task_for("deb", first, package_name="first")), "1.0")
    control_files = {"conffiles": "/etc/hello.conf\n"}
    second = build_deb(tmp_path, "1.0", control_files=control_files, files={"etc/hello.conf": "escaped"})
    assert_failed(await runner.install(task_for("deb", second)), "unsafe-path", "etc/hello.conf")
    assert outside.read_text() == "of the host"


def file_archive(*members: tarfile.TarInfo) -> io.BytesIO:
    return io.BytesIO(b"".join(member.tobuf(tarfile.GNU_FORMAT) for member in members) + bytes(1024))


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, linkname, size
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../evil")],
        [member("opt/../../evil")],
        [member("opt/evil", tarfile.LNKTYPE, "../../etc/shadow")],
        [member("dev/sda", tarfile.BLKTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("x", tarfile.SYMTYPE, "/etc"), member("x/passwd")],
        [member("x", tarfile.SYMTYPE, "/etc"), member("copy", tarfile.LNKTYPE, "x/shadow")],
        [member("var/lib/dpkg/status")],
        [member("x", tarfile.SYMTYPE, "/etc"), member("x/" + "long-name/" * 20)],
    ],
)
def test_a_file_archive_that_would_leave_its_root_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(RefusedError) as caught:
        check_paths(file_archive(*members), tmp_path, 1_000_000)
    assert caught.value.code == "unsafe-path"


def test_a_prefix_that_dpkg_ignores_cannot_hide_where_a_file_goes(tmp_path: Path) -> None:
    header = bytearray(member("x/passwd").tobuf(tarfile.GNU_FORMAT))
    header[345:349] = b"safe"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
    link = member("x", tarfile.SYMTYPE, "/etc").tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(RefusedError, match="symbolic link of the same package"):
        check_paths(io.BytesIO(link + header + bytes(1024)), tmp_path, 1_000_000)


@pytest.mark.parametrize("free_bytes", [511, 512])
def test_a_package_larger_than_the_free_space_is_refused_before_it_is_unpacked(tmp_path: Path, free_bytes: int) -> None:
    archive = io.BytesIO(member("file", size=512).tobuf(tarfile.GNU_FORMAT) + bytes(512) + bytes(1024))
    if free_bytes == 512:
        check_paths(archive, tmp_path, free_bytes)
        return
    with pytest.raises(RefusedError) as caught:
        check_paths(archive, tmp_path, free_bytes)
    assert caught.value.code == "no-space"


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 512, b"x" * 100, member("a", size=2_000).tobuf(), member("n" * 5_000).tobuf(tarfile.GNU_FORMAT)],
)
def test_a_damaged_archive_is_a_bad_file(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadFileError, match="damaged"):
        check_paths(io.BytesIO(data), tmp_path, 1_000_000)


@needs_dpkg
async def test_a_deb_cannot_plant_a_script_in_the_database_of_dpkg(tmp_path: Path) -> None:
    file = build_deb(tmp_path, "1.0", files={"var/lib/dpkg/info/other.postrm": "#!/bin/sh\n"})
    assert_failed(await runner_for(tmp_path, "deb").install(task_for("deb", file)), "unsafe-path", "dpkg")


@needs_dpkg
async def test_a_deb_with_long_paths_and_links_inside_its_root_is_installed(tmp_path: Path) -> None:
    long_name = "opt/" + "/".join(["a-folder-with-a-long-name"] * 8) + "/file"
    file = build_deb(tmp_path, "1.0", files={long_name: "deep", "usr/lib/real": "x"}, links={"opt/link": "../usr/lib"})
    runner = runner_for(tmp_path, "deb")
    assert_installed(await runner.install(task_for("deb", file)), "1.0")
    assert (tmp_path / "deb-root" / long_name).read_text() == "deep"


@needs_dpkg
async def test_a_configuration_file_the_owner_changed_survives_the_upgrade(tmp_path: Path) -> None:
    runner = runner_for(tmp_path, "deb")
    for version in ("1.0", "2.0"):
        conffiles = {"conffiles": "/etc/hello.conf\n"}
        file = build_deb(tmp_path, version, control_files=conffiles, files={"etc/hello.conf": f"default {version}\n"})
        assert_installed(await runner.install(task_for("deb", file, version=version)), version)
        (tmp_path / "deb-root/etc/hello.conf").write_text("mine\n")
    assert (tmp_path / "deb-root/etc/hello.conf").read_text() == "mine\n"


@needs_dpkg
async def test_two_debs_at_once_wait_for_each_other(tmp_path: Path) -> None:
    runner = runner_for(tmp_path, "deb")
    names = ("first-lockstep", "second-lockstep", "third-lockstep")
    tasks = [
        task_for("deb", build_deb(tmp_path, "1.0", package_name=name, files={f"opt/{name}": ""}), package_name=name)
        for name in names
    ]
    for result in await asyncio.gather(*map(runner.install, tasks)):
        assert_installed(result, "1.0")


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder anybody may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_dpkg
@needs_root
def test_an_ordinary_user_installs_debs_into_a_folder_of_their_own(shared_folder: Path) -> None:
    files = [build_deb(shared_folder, version) for version in ("1.0", "2.0", "1.0")]
    home = shared_folder / "terminal"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    child = os.fork()
    if not child:
        os._exit(install_as_nobody(home, files))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    installed = home / "deb-root/opt/hello/version"
    assert (installed.read_text(), installed.stat().st_uid) == ("1.0", NOBODY)


def install_as_nobody(home: Path, files: list[Path]) -> int:
    """Run in a forked child, since the interpreter itself may lie where an ordinary user cannot read it."""

    async def install() -> int:
        runner = runner_for(home, "deb")
        for file, version in zip(files, ("1.0", "2.0", "1.0"), strict=True):
            result = await runner.install(task_for("deb", file, version=version))
            if not result.ok:
                os.write(2, result.detail.encode())
                return 1
        return 0 if await runner.installed_version("hello-lockstep") == "1.0" else 2

    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return asyncio.run(install())
    except BaseException as error:
        os.write(2, repr(error).encode())
        return 3


def test_the_system_as_root_folder_is_refused_to_an_ordinary_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="runs as user 1000"):
        runner_for(tmp_path, "deb", RunnerSettings(root="/"))


# --- wheels -------------------------------------------------------------------------------------------------------


async def test_a_wheel_is_installed_upgraded_and_downgraded_in_a_private_environment(tmp_path: Path) -> None:
    runner = runner_for(tmp_path / "terminal", "wheel")
    assert await runner.installed_version("hello-lockstep") is None
    for version in ("1.0", "2.0rc1", "1.0"):
        result = await runner.install(wheel_task(build_wheel(tmp_path, version), version))
        assert_installed(result, version)
        assert await runner.installed_version("hello_lockstep") == version
    python = tmp_path / "terminal/wheel-environment/bin/python"
    program = "import hello_lockstep; print(hello_lockstep.VERSION)"
    assert (await run_program([str(python), "-c", program], seconds=10)).output == "1.0\n"


async def test_what_a_killed_terminal_left_in_the_environment_goes_with_the_next_wheel(tmp_path: Path) -> None:
    left = tmp_path / "terminal/wheel-environment/.install-killed"
    left.mkdir(parents=True)
    (left / "hello_lockstep-1.0-py3-none-any.whl").write_bytes(b"a link that kept the bytes of an installer for ever")
    result = await runner_for(tmp_path / "terminal", "wheel").install(wheel_task(build_wheel(tmp_path, "1.0"), "1.0"))
    assert_installed(result, "1.0")
    assert list(left.parent.glob(".install-*")) == []


async def test_a_wheel_with_requirements_is_installed_and_says_they_are_missing(tmp_path: Path) -> None:
    file = build_wheel(tmp_path, "1.0", requires="not-there>=2")
    result = await runner_for(tmp_path, "wheel").install(wheel_task(file, "1.0"))
    assert_installed(result, "1.0")
    assert "dependencies not installed (not-there>=2)" in result.detail


async def test_a_damaged_wheel_fails_with_the_words_of_pip(tmp_path: Path) -> None:
    file = build_wheel(tmp_path, "1.0")
    file.write_bytes(file.read_bytes()[:-40])
    runner = runner_for(tmp_path, "wheel")
    assert_failed(await runner.install(wheel_task(file, "1.0")), "runner-failed", "pip", "invalid")
    assert await runner.installed_version("hello-lockstep") is None


@pytest.mark.parametrize(
    "name",
    ["", "hello.whl", "../hello_lockstep-1.0-py3-none-any.whl", "other-1.0-py3-none-any.whl", "--help", "a\0b.whl"],
)
async def test_a_wheel_without_a_name_of_its_own_package_is_refused(tmp_path: Path, name: str) -> None:
    task = task_for("wheel", build_wheel(tmp_path, "1.0"), facts={"file_name": name})
    assert_failed(await runner_for(tmp_path, "wheel").install(task), "bad-file", "file name")
    assert not (tmp_path / "wheel-environment").exists()


# --- APKs on a simulated device -----------------------------------------------------------------------------------


async def test_an_apk_is_copied_and_the_package_list_confirms_it(tmp_path: Path) -> None:
    runner = runner_for(tmp_path / "terminal", "apk")
    assert await runner.installed_version("org.example.hello") is None
    for version in ("1.0", "2.0", "1.0"):
        file = tmp_path / "object"
        file.write_bytes(f"apk {version}".encode())
        task = task_for("apk", file, package_name="org.example.hello", version=version)
        assert_installed(await runner.install(task), version)
        assert await runner.installed_version("org.example.hello") == version
    applications = tmp_path / "terminal/apk-apps"
    assert (applications / "org.example.hello/base.apk").read_bytes() == b"apk 1.0"
    row = {"version": "1.0", "digest": hashlib.sha256(b"apk 1.0").hexdigest()}
    assert json.loads((applications / "packages.json").read_text()) == {"org.example.hello": row}
    assert sorted(path.name for path in applications.rglob("*")) == ["base.apk", "org.example.hello", "packages.json"]


async def test_an_apk_that_changed_after_it_was_verified_leaves_the_old_one_in_place(tmp_path: Path) -> None:
    runner = runner_for(tmp_path, "apk")
    file = tmp_path / "object"
    file.write_bytes(b"first")
    assert_installed(await runner.install(task_for("apk", file, package_name="org.example.hello")), "1.0")
    task = task_for("apk", file, package_name="org.example.hello", version="2.0")
    file.write_bytes(b"changed")
    assert_failed(await runner.install(task), "bad-file", "SHA-256")
    assert await runner.installed_version("org.example.hello") == "1.0"
    assert (tmp_path / "apk-apps/org.example.hello/base.apk").read_bytes() == b"first"


async def test_a_damaged_package_list_is_said_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "apk-apps").mkdir()
    (tmp_path / "apk-apps/packages.json").write_text("{not json")
    (tmp_path / "object").write_bytes(b"apk")
    runner = runner_for(tmp_path, "apk")
    with pytest.raises(UnavailableError, match="damaged"):
        await runner.installed_version("org.example.hello")
    task = task_for("apk", tmp_path / "object", package_name="org.example.hello")
    assert_failed(await runner.install(task), "outcome-unknown", "packages.json")
    assert (tmp_path / "apk-apps/packages.json").read_text() == "{not json"


# --- names --------------------------------------------------------------------------------------------------------


NO_NAMES = (
    "",
    "..",
    ".a",
    "../evil",
    "a/b",
    "/etc/passwd",
    "-i",
    "--root=/",
    "a\n",
    "a\0b",
    "org.x/../../y",
    "a" * 300,
)


@pytest.mark.parametrize("kind", ["deb", "wheel", "apk"])
@pytest.mark.parametrize("name", [*NO_NAMES, "a b"])
@pytest.mark.parametrize("command", [[], ["true"]])
async def test_a_package_name_that_is_a_path_or_an_option_is_refused_by_every_runner(
    tmp_path: Path, kind: InstallerKind, name: str, command: list[str]
) -> None:
    runner = runner_for(tmp_path / "terminal", kind, RunnerSettings(command=command))
    (tmp_path / "object").write_bytes(b"")
    assert_failed(await runner.install(task_for(kind, tmp_path / "object", package_name=name)), "bad-package-name")
    with pytest.raises(BadFileError, match="not a package name"):
        await runner.installed_version(name)
    assert not (tmp_path / "terminal").exists()


OTHER_NAMES: dict[InstallerKind, str] = {
    "rpm": "gcc-c++_libs.x86",
    "ipa": "com.example.Set-Top",
    "msix": "Example.App",
    "exe": "greeter",
    "pkg": "Ein Gruß (2)",
}


@pytest.mark.parametrize("kind", [kind for kind in get_args(InstallerKind) if kind not in ("deb", "wheel", "apk")])
async def test_every_other_kind_is_installed_by_its_command_and_by_a_simulated_device(
    tmp_path: Path, kind: InstallerKind
) -> None:
    file, name = tmp_path / "object", OTHER_NAMES.get(kind, "hello-lockstep")
    file.write_bytes(b"an installer")
    settings = RunnerSettings(command=["sh", "-c", "true"], check_command=["sh", "-c", "echo 1.0"])
    for runner in (runner_for(tmp_path / "a", kind, settings), SimulatedRunner(tmp_path / "b", RunnerSettings(), kind)):
        assert_installed(await runner.install(task_for(kind, file, package_name=name)), "1.0")
        assert await runner.installed_version(name) == "1.0"
        for bad in (*NO_NAMES, "a\\b", "ß" * 128, "a\u202eb", "a\udce9"):
            assert_failed(await runner.install(task_for(kind, file, package_name=bad)), "bad-package-name")


# --- the owner's command ------------------------------------------------------------------------------------------


def command_runner(folder: Path, script: str, check: str = "", *, seconds: float = 30) -> Runner:
    check_command = ["sh", "-c", check] if check else []
    settings = RunnerSettings(command=["sh", "-c", script], check_command=check_command, timeout_seconds=seconds)
    return runner_for(folder, "deb", settings)


@pytest.fixture
def task(tmp_path: Path) -> InstallTask:
    file = tmp_path / "object"
    file.write_bytes(b"an installer")
    return task_for("deb", file, facts={"file_name": "hello.deb", "odd name; $(x)": "it's\0 odd"})


async def test_a_command_is_told_everything_by_its_environment_and_nothing_of_ours(
    tmp_path: Path, task: InstallTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "of the terminal")
    runner = command_runner(tmp_path, "env > told; printf %s 1.0 > version", "cat version")
    assert_installed(await runner.install(task), "1.0")
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    ours = {name.removeprefix("LOCKSTEP_"): value for name, value in told.items() if name.startswith("LOCKSTEP_")}
    assert ours == {
        "FILE": str(task.file),
        "PROGRAM": "hello",
        "PACKAGE": "hello-lockstep",
        "VERSION": "1.0",
        "KIND": "deb",
        "SHA256": task.digest_hex,
        "DELIVERY": "delivery-1",
        "FACT_FILE_NAME": "hello.deb",
        "FACT_ODD_NAME_X_": "it's odd",
    }
    assert (told["LC_ALL"], "A_SECRET" in told) == ("C.UTF-8", False)


async def test_a_command_without_check_command_succeeds_unconfirmed_and_cannot_be_asked(
    tmp_path: Path, task: InstallTask
) -> None:
    runner = command_runner(tmp_path, "exit 0")
    result = await runner.install(task)
    assert (result.ok, result.reason, result.installed_version) == (True, "installed", "")
    assert "not confirmed: no check command" in result.detail
    with pytest.raises(UnavailableError) as caught:
        await runner.installed_version("hello-lockstep")
    assert caught.value.code == "outcome-unknown"


async def test_a_command_that_fails_is_reported_with_its_last_words(tmp_path: Path, task: InstallTask) -> None:
    result = await command_runner(tmp_path, "echo no room on this device >&2; exit 3").install(task)
    assert_failed(result, "runner-failed", "exit code 3", "no room on this device")


async def test_a_command_that_is_not_there_is_named(tmp_path: Path, task: InstallTask) -> None:
    runner = runner_for(tmp_path, "deb", RunnerSettings(command=["/not/there"]))
    assert_failed(await runner.install(task), "runner-failed", "/not/there", "No such file")


@pytest.mark.parametrize(
    ("check", "reason"), [("echo 0.9", "not-confirmed"), ("exit 1", "not-confirmed"), ("exit 2", "outcome-unknown")]
)
async def test_the_check_command_has_the_last_word(tmp_path: Path, task: InstallTask, check: str, reason: str) -> None:
    assert_failed(await command_runner(tmp_path, "true", check).install(task), reason)


async def test_output_without_end_is_drained_and_only_its_tail_kept(tmp_path: Path, task: InstallTask) -> None:
    result = await command_runner(tmp_path, "head -c 20000000 /dev/zero | tr '\\0' x; echo the end; exit 1").install(
        task
    )
    assert_failed(result, "runner-failed", "the end")


async def test_standard_input_is_empty(tmp_path: Path, task: InstallTask) -> None:
    assert_failed(await command_runner(tmp_path, "read answer || exit 7").install(task), "runner-failed", "exit code 7")


# A shell and its child, both deaf to TERM, that hold the pipe `hold` open: it ends when both are gone.
STUBBORN = "trap '' TERM; exec 9>hold; (while :; do sleep 60; done) & echo ready >&9; while :; do sleep 60; done"


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "hold")
    return tmp_path / "hold"


async def test_the_deadline_kills_a_command_and_its_children_that_ignore_being_asked(
    tmp_path: Path, task: InstallTask, hold: Path
) -> None:
    all_gone = asyncio.create_task(asyncio.to_thread(hold.read_bytes))
    result = await command_runner(tmp_path, f"echo so far so good; {STUBBORN}", seconds=0.5).install(task)
    assert_failed(result, "runner-timeout", "0.5 s", "so far so good")
    assert await asyncio.wait_for(all_gone, 10) == b"ready\n"


async def test_cancelling_kills_a_command_and_its_children_and_frees_the_lock(
    tmp_path: Path, task: InstallTask, hold: Path
) -> None:
    installing = asyncio.create_task(command_runner(tmp_path, STUBBORN).install(task))
    with await asyncio.to_thread(hold.open, "rb", buffering=0) as pipe:
        assert await asyncio.to_thread(pipe.readline) == b"ready\n"
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
        assert await asyncio.wait_for(asyncio.to_thread(pipe.read), 10) == b""
    assert (await command_runner(tmp_path, "true", seconds=1).install(task)).ok


async def test_a_daemon_the_command_leaves_behind_delays_nothing_and_keeps_no_lock(
    tmp_path: Path, task: InstallTask
) -> None:
    runner = command_runner(tmp_path, "sleep 60 & echo $! > daemon", "echo 1.0", seconds=5)
    started = time.monotonic()
    try:
        assert_installed(await runner.install(task), "1.0")
        assert_installed(await runner.install(task), "1.0")
        assert time.monotonic() - started < 5
    finally:
        for line in (tmp_path / "daemon").read_text().split():
            os.kill(int(line), signal.SIGKILL)


ORPHAN_MAKER = """
import asyncio, pathlib, sys
from terminal.installers.debarchive import check_paths
from terminal.installers.programs import run_program, runner_lock

async def main(folder):
    async with runner_lock(folder / "deb.lock", 5) as lock:
        await run_program(["cat", "hold"], seconds=60, folder=folder, lock=lock)

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


async def test_an_installer_that_outlives_a_killed_terminal_is_waited_for(tmp_path: Path, hold: Path) -> None:
    repository = Path(__file__).parents[2]
    terminal = await asyncio.create_subprocess_exec(sys.executable, "-c", ORPHAN_MAKER, tmp_path, cwd=repository)
    with await asyncio.to_thread(hold.open, "wb"):  # from here on `cat` runs
        terminal.kill()
        await terminal.wait()
        with pytest.raises(UnavailableError) as caught:
            await command_runner(tmp_path, "true", "echo 1.0", seconds=0.2).installed_version("hello-lockstep")
        assert caught.value.code == "runner-busy"
    assert await command_runner(tmp_path, "true", "echo 1.0").installed_version("hello-lockstep") == "1.0"


# --- running a program --------------------------------------------------------------------------------------------


async def test_a_program_ends_with_its_exit_code_and_both_outputs_apart(tmp_path: Path) -> None:
    outcome = await run_program(["sh", "-c", "pwd; echo trouble >&2; exit 4"], seconds=10, folder=tmp_path)
    assert (outcome.exit_code, outcome.timed_out) == (4, False)
    assert (outcome.output, outcome.errors) == (f"{tmp_path}\n", "trouble\n")


async def test_running_programs_leaves_no_file_open(tmp_path: Path) -> None:
    await run_program(["true"], seconds=10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with runner_lock(tmp_path / "a.lock", 1) as lock:
        await run_program(["true"], seconds=10, lock=lock)
    await run_program(["/not/there"], seconds=10)
    await run_program(["sleep", "60"], seconds=0.01)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, task: InstallTask) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_failed(
        await runner_for(tmp_path / "file", "apk").install(task_for("apk", task.file, package_name="a.b")),
        "runner-failed",
        str(tmp_path / "file"),
    )


async def test_a_check_command_without_a_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="check_command"):
        runner_for(tmp_path, "apk", RunnerSettings(check_command=["true"]))


async def test_a_folder_given_in_the_settings_is_taken(tmp_path: Path, task: InstallTask) -> None:
    runner = runner_for(tmp_path, "apk", RunnerSettings(root="phone"))
    assert_installed(await runner.install(task_for("apk", task.file, package_name="a.b")), "1.0")
    assert (tmp_path / "phone/a.b/base.apk").exists()


async def test_there_is_one_runner_for_each_kind_named(tmp_path: Path) -> None:
    assert set(build_runners(tmp_path, ("wheel", "apk"), {})) == {"wheel", "apk"}
