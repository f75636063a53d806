"""What must hold of a simulated fleet, whatever its size: the simulation is only as good as these."""

from __future__ import annotations

import math

import pytest

from benchmarks.fleet import GET_LIMIT, Fleet, Simulation, simulate

HOUR = 3600.0


def test_a_fleet_opens_its_connections_and_replaces_each_once_a_lifetime() -> None:
    fleet = Fleet(20, rotate_every=math.inf, duration=HOUR)
    run = Simulation(fleet).run()
    opened = run.connects.total()
    assert run.connects.series[0] == 20 * 20
    # Lives of 1620 to 1800 s: two replacements within the hour for most, and never a third.
    assert 2 * 400 <= opened <= 3 * 400
    assert run.failed_logins.total() == 0


def test_without_rotations_the_store_is_asked_once_an_interval_and_instance() -> None:
    result = simulate(Fleet(50, rotate_every=math.inf, interval=60.0))
    assert result["calls_mean"] / 50 == pytest.approx(1 / 54, rel=0.05)  # an interval is shortened by up to a fifth


def test_a_rotation_costs_an_instance_at_most_one_failed_login() -> None:
    for seed in range(5):
        run = Simulation(Fleet(40, seed=seed)).run()
        assert 0 < run.failed_logins.total() <= 40
        assert run.waited == 0
        assert run.worst_stale == 0


def test_an_announced_rotation_costs_no_failed_login() -> None:
    for seed in range(5):
        run = Simulation(Fleet(40, seed=seed, announce=70.0)).run()
        assert run.failed_logins.total() == 0
        assert run.waited == 0
    assert simulate(Fleet(40, rotate_every=600.0, announce=70.0))["failed_logins"] == 0


def test_an_announcement_that_is_too_short_still_spares_those_that_heard_it() -> None:
    silent, short = (simulate(Fleet(200, announce=announce))["failed_logins"] for announce in (0.0, 30.0))
    assert 0 < short < silent


def test_a_rotation_every_ten_minutes_never_leaves_an_instance_without_a_password() -> None:
    result = simulate(Fleet(40, rotate_every=600.0))
    assert result["rotations"] == 6
    assert result["worst_stale"] == 0
    assert result["waited"] == 0
    assert result["failed_logins"] <= 40 * 6


def test_a_store_that_is_down_while_both_passwords_change_leaves_instances_stale_until_it_is_back() -> None:
    result = simulate(Fleet(20, rotate_every=600.0, outage=(900.0, 2700.0)))
    both_changed = 1710.0
    assert 2700 - both_changed <= result["worst_stale"] <= 2700 - both_changed + 5
    assert result["waited"] > 0


def test_after_the_outage_every_instance_has_the_pair_in_force_again_and_all_its_connections() -> None:
    run = Simulation(Fleet(20, rotate_every=600.0, outage=(900.0, 2700.0))).run()
    assert all(one.alternator is not None and one.alternator.pair == run.in_force for one in run.instances)
    assert all(one.due == 0 and not one.waits for one in run.instances)


def test_every_connection_has_one_successor_and_none_is_lost_on_the_way() -> None:
    fleet = Fleet(20, rotate_every=600.0, outage=(900.0, 2700.0))
    run = Simulation(fleet).run()
    # What is left in the queue after the end: nothing, since deadlines beyond it are not queued; so count the births.
    successes = run.connects.total() - run.failed_logins.total()
    assert 2 * 400 <= successes <= 3 * 400 + 20  # a probe that succeeds is closed again


def test_the_store_throttles_what_is_above_its_limit_and_every_instance_starts_all_the_same() -> None:
    fleet = Fleet(12_000, connections=1, duration=20.0, lifetime=HOUR)
    result = simulate(fleet)
    assert result["gets_peak_start"] > GET_LIMIT
    assert result["throttled"] > 0
    assert result["all_started"] is not None


def test_figures_scale_with_the_fleet() -> None:
    small, large = (simulate(Fleet(size)) for size in (50, 200))
    for key in ("calls_mean", "connects_mean"):
        assert large[key] / 200 == pytest.approx(small[key] / 50, rel=0.05)


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulate(Fleet(10, seed=3)) == simulate(Fleet(10, seed=3))
    assert simulate(Fleet(10, seed=3)) != simulate(Fleet(10, seed=4))
