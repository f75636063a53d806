"""What must hold of a simulated fleet whose passwords are tokens."""

from __future__ import annotations

import pytest

from benchmarks.token_fleet import TokenFleet, simulate


@pytest.mark.parametrize("instances", [10, 1000, 10_000])
def test_a_fleet_asks_for_a_token_when_two_thirds_of_the_last_one_have_passed(instances: int) -> None:
    result = simulate(TokenFleet(instances))
    an_hour = 3600 / (0.65 * 900)
    assert result["asked"] / instances == pytest.approx(an_hour, rel=0.2)
    assert result["longest_without"] == 0.0


def test_the_busiest_second_after_the_start_is_far_below_the_fleets_size() -> None:
    result = simulate(TokenFleet(10_000))
    assert result["asked_peak"] < 10_000 / 50, "one wave at the start is not followed by another one"


def test_an_outage_shorter_than_what_is_left_of_a_token_leaves_nobody_without() -> None:
    assert simulate(TokenFleet(1000, outage=(600.0, 840.0)))["longest_without"] == 0.0


def test_after_a_longer_outage_every_instance_has_a_token_within_seconds() -> None:
    result = simulate(TokenFleet(1000, outage=(300.0, 1500.0)))
    end_of_the_first_to_expire = 900.0
    assert 0 < result["longest_without"] <= 1500.0 - end_of_the_first_to_expire + 3.0
