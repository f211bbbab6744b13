"""The simulator: the same seed gives the same devices, a mix file is checked, and the command runs a fleet."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from protocol.errors import BadFileError, UsageError
from terminal.simulated import DEFAULT_MIX, SimulatedFolder, load_mix, make_devices, make_fleet
from tests.harness import PASSWORD, devices, ended, make_installer, running_hub, until

MIX = """
[[devices]]
name = "Till"
weight = 2
model = "Till 3000"
os_type = "linux"
installer_kinds = ["deb"]
"""


def test_the_same_seed_gives_the_same_devices_and_another_seed_others() -> None:
    assert make_devices(DEFAULT_MIX, 100, seed=7) == make_devices(DEFAULT_MIX, 100, seed=7)
    assert make_devices(DEFAULT_MIX, 100, seed=7) != make_devices(DEFAULT_MIX, 100, seed=8)


def test_every_device_has_a_name_of_its_own_and_a_small_fleet_is_mixed() -> None:
    made = make_devices(DEFAULT_MIX, 1_000, seed=1)
    assert len({name for name, _ in made}) == 1_000
    assert {device.form_factor for _, device in made[: len(DEFAULT_MIX)]} == {"phone", "tablet", "tv", "car", "pc"}


def test_a_mix_file_says_which_devices_there_are(tmp_path: Path) -> None:
    file = tmp_path / "mix.toml"
    file.write_text(MIX)
    made = make_devices(load_mix(file), 3, seed=1)
    assert [(name, device.model) for name, device in made] == [(f"Till {number}", "Till 3000") for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[devices", "not valid TOML"),
        ("[device]\n", "not a list of devices"),
        ('[[devices]]\nname = "a"\nmodel = "b"\nscren = 1\n', "unknown key 'scren'"),
        ('[[devices]]\nname = "a"\n', "model"),
        ('[[devices]]\nname = "a"\nmodel = "b"\nweight = 0\n', "describes no device"),
        ('[[devices]]\nname = "a"\nmodel = "b"\nos_type = "dos"\n', "Invalid enum value"),
    ],
)
def test_a_wrong_mix_file_is_refused_with_what_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "mix.toml"
    file.write_text(content)
    with pytest.raises(BadFileError, match=says):
        load_mix(file)


def test_two_devices_of_one_name_are_refused(tmp_path: Path) -> None:
    made = [("TV", DEFAULT_MIX[0].device)] * 2
    with pytest.raises(UsageError, match="one name"):
        make_fleet(made, tmp_path, "ws://127.0.0.1:1", "alice")


async def test_an_enrolment_is_kept_for_the_next_run(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", 2) as fleet:
            first = [device.terminal for device in fleet.devices]
        async with devices(hub, "alice", 2) as fleet:
            assert [device.terminal for device in fleet.devices] == first
            assert len(await fleet.initiator.devices()) == 2


async def test_more_devices_than_may_log_in_at_once_all_get_in(tmp_path: Path) -> None:
    async with running_hub(tmp_path, sockets_before_login=8) as hub:
        await hub.add_account("alice")
        async with devices(hub, "alice", 40) as fleet:
            assert fleet.fleet.tally().online == 40


async def test_devices_that_are_cut_again_and_again_still_get_everything(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        await hub.publish(make_installer(tmp_path, "deb", size=500_000), program="hello")
        made = [(f"PC {number}", DEFAULT_MIX[-1].device) for number in range(4)]
        async with devices(hub, "alice", made, connect=False) as fleet:
            for device in fleet.devices[1:]:
                device.cut_every_seconds = 0.3
            await fleet.go_online()
            await until(lambda: all(fleet[name].logins > 1 for name in ("PC 1", "PC 2", "PC 3")))
            watch = await fleet.initiator.sync("hello", everyone=True)
            assert await ended(watch) == "done"


async def test_the_command_runs_a_fleet_and_sums_it_up(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        answer = await run_simulate(hub.url, tmp_path, PASSWORD, "--count", "6", "--duration", "3", "--json")
    code, output, errors = answer
    assert (code, errors) == (0, "")
    summed = json.loads(output)
    assert (summed["devices"], summed["enrolled"], summed["online"], summed["failed"]) == (6, 6, 6, 0)


async def test_the_command_refuses_a_wrong_password_once_for_all(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.add_account("alice")
        code, output, errors = await run_simulate(hub.url, tmp_path, "wrong password", "--count", "6")
    assert code == 1
    assert "wrong" in errors
    assert "0 enrolled" in output


async def run_simulate(url: str, folder: Path, password: str, *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "terminal", "simulate", "--hub", url, "--account", "alice", "--password-stdin",
        "--state", str(folder / "simulated"), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await asyncio.wait_for(process.communicate(f"{password}\n".encode()), 40)
    return process.returncode, output.decode(), errors.decode()


def test_a_simulated_folder_keeps_no_device_list(tmp_path: Path) -> None:
    folder = SimulatedFolder(tmp_path)
    folder.save_devices("epoch", 1, ())
    assert folder.devices() is None
