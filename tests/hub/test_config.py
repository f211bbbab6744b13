"""Settings: defaults < file < environment < flags, and refusals that name what is wrong."""

from pathlib import Path

import pytest

from hub.config import is_loopback, load_settings, load_with_sources, shown, split_address
from protocol.errors import UsageError


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('data = "file"\nlisten = "127.0.0.1:1"\nterminals_per_account = 7\n')
    environment = {"LOCKSTEP_HUB_DATA": "environment", "LOCKSTEP_HUB_LISTEN": "127.0.0.1:2"}
    settings = load_settings(file, {"listen": "127.0.0.1:3", "names": ()}, environment)
    assert (settings.data, settings.address) == ("environment", ("127.0.0.1", 3))
    assert settings.terminals_per_account == 7
    assert settings.sockets_before_login == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listne = 'x'", "Did you mean listen"),
        ("terminals_per_account = 0", "terminals_per_account"),
        ("disk_reserve_bytes = 'much'", "disk_reserve_bytes"),
        ("not toml", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(file, {}, {})
    assert said in str(caught.value)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", ":1", "192.0.2.1:1", "hub.example:1", "127.evil.example:1", "[::]:1"])
def test_listening_off_this_machine_without_tls_has_to_be_said(listen: str) -> None:
    with pytest.raises(UsageError, match="without TLS"):
        load_settings(None, {"listen": listen}, {})
    assert load_settings(None, {"listen": listen, "insecure_lan": True}, {}).listen == listen
    assert load_settings(None, {"listen": listen, "tls_cert": "c", "tls_key": "k"}, {}).encrypted


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(UsageError, match="both"):
        load_settings(None, {"tls_cert": "c"}, {})


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "x:y"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        split_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_recognised(host: str) -> None:
    assert is_loopback(host)


def test_each_setting_knows_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('data = "file"\nlisten = "127.0.0.1:1"\n')
    environment = {"LOCKSTEP_HUB_LISTEN": "127.0.0.1:2", "LOCKSTEP_HUB_TRUSTED_PROXIES": "127.0.0.1,::1"}
    settings, sources = load_with_sources(file, {"names": ("hub.example",), "data": None}, environment)
    assert settings.trusted_proxies == ("127.0.0.1", "::1")
    assert sources == {
        "data": str(file), "listen": "LOCKSTEP_HUB_LISTEN", "trusted_proxies": "LOCKSTEP_HUB_TRUSTED_PROXIES",
        "names": "--name",
    }  # fmt: skip


def test_a_password_in_an_address_is_not_shown() -> None:
    assert shown("https://user:secret@idp.example/keys") == "https://...@idp.example/keys"
    assert shown("https://user:p@ss@idp.example/keys") == "https://...@idp.example/keys"
    assert shown(("https://token@idp.example", "plain")) == ["https://...@idp.example", "plain"]
    assert shown("https://idp.example/a@b") == "https://idp.example/a@b"
    assert shown(7) == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data = 7", "data is wrong: it is not a text"),
        ('posture_targets = "maybe"', "posture_targets is wrong: it is not off or report or require"),
        ('scan_yara = "perhaps"', "scan_yara is wrong: it is not true or false"),
        ("scan_seconds = 0", "scan_seconds is wrong: it is not a whole number from 1 to 600"),
        ('store_bytes = "much"', "store_bytes is wrong: it is not a whole number from 0"),
        ("names = [7]", "names is wrong: it is not a list of texts"),
        ('names = "hub"', "names is wrong: it is not a list of texts"),
    ],
)
def test_a_wrong_setting_is_told_what_it_may_be(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(line)
    with pytest.raises(UsageError, match=words):
        load_settings(file, {}, {})
