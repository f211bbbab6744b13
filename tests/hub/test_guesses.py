"""Guesses: at most ten an hour for an account, whoever asks, and nothing makes the hub forget them."""

from hub.guesses import ACCOUNT_AT_ONCE, ADDRESS_AT_ONCE, Guesses, network_of

HOUR = 3_600.0


def taken(guesses: Guesses, account: str, hosts: list[str], *, until: float, step: float = 1.0) -> int:
    """Count the guesses that somebody gets who asks all the time, each time from the next host."""
    count, now, turn = 0, 0.0, 0
    while now < until:
        count += guesses.take(account, hosts[turn % len(hosts)], now) == 0.0
        now, turn = now + step, turn + 1
    return count


def test_an_account_has_ten_guesses_in_its_first_hour_from_one_address_and_from_a_thousand() -> None:
    assert taken(Guesses(), "ada", ["192.0.2.1"], until=HOUR) == 9
    assert taken(Guesses(), "ada", ["192.0.2.1"], until=HOUR + 1) == 10
    many = [f"10.0.{number // 250}.{number % 250}" for number in range(1_000)]
    assert taken(Guesses(), "ada", many, until=HOUR + 1) == 10


def test_a_day_of_guessing_gets_five_an_hour_and_the_first_five() -> None:
    assert taken(Guesses(), "ada", ["192.0.2.1"], until=24 * HOUR, step=60.0) == 5 + 24 * 5 - 1


def test_a_right_one_counts_as_no_guess() -> None:
    guesses = Guesses()
    for _ in range(1_000):
        assert guesses.take("ada", "192.0.2.1", 0.0) == 0.0
        guesses.give_back("ada", "192.0.2.1", 0.0)


def test_who_has_none_left_is_told_when_to_come_again_and_asking_takes_nothing() -> None:
    guesses = Guesses()
    for _ in range(ACCOUNT_AT_ONCE):
        assert guesses.take("ada", "192.0.2.1", 0.0) == 0.0
    assert [guesses.take("ada", "192.0.2.1", 0.0) for _ in range(3)] == [720.0] * 3
    assert guesses.take("ada", "192.0.2.1", 719.0) == 1.0
    assert guesses.take("ada", "192.0.2.1", 720.0) == 0.0


def test_one_address_gets_twenty_over_all_names_and_other_addresses_go_on() -> None:
    guesses = Guesses()
    got = [guesses.take(f"name{number}", "192.0.2.1", 0.0) == 0.0 for number in range(100)]
    assert sum(got) == ADDRESS_AT_ONCE
    assert guesses.take("ada", "192.0.2.2", 0.0) == 0.0


def test_refused_guesses_of_one_account_cost_the_address_nothing() -> None:
    guesses = Guesses()
    for _ in range(1_000):
        guesses.take("ada", "192.0.2.1", 0.0)
    assert guesses.take("eve", "192.0.2.1", 0.0) == 0.0


def test_a_flood_of_names_makes_no_name_forgotten() -> None:
    guesses = Guesses()
    for _ in range(ACCOUNT_AT_ONCE):
        guesses.take("ada", "192.0.2.1", 0.0)
    for number in range(100_000):
        guesses.take(f"name{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert guesses.take("ada", "192.0.2.1", 0.0) > 0.0


def test_an_ipv6_network_is_one_asker_and_a_mapped_address_is_its_ipv4_address() -> None:
    assert network_of("2001:db8:1:2:aaaa::1") == network_of("2001:db8:1:2:bbbb::9") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("?") == "?"
