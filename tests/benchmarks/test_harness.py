"""The harness: a missing peer fails loudly, passwords stay out of sight, every peer does what it is measured for."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as program
from aiopqr.testing import EmbeddedPostgres
from benchmarks import fleet_report, peers, report
from benchmarks.distance import at_distance
from benchmarks.measure import Judged, Spread, Target
from benchmarks.peers import Account, Entry, MissingPeer, Where
from benchmarks.scenarios import churn, fleet, rotation, steady
from benchmarks.scenarios.plan import Plan, silent
from benchmarks.worker import Load, run
from benchmarks.workers import RemoteWorker, WorkerFailed, latencies

WHERE = Where("127.0.0.1", 1, "postgres", Account("odd", "p1-secret"), Account("even", "p2-secret"))


@pytest.fixture
def without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Entry("psycopg3", "psycopg_that_is_missing", "psycopg[binary,pool]")
    monkeypatch.setitem(peers.PEERS, "psycopg_pool", missing)


@pytest.mark.usefixtures("without_psycopg")
def test_a_missing_peer_is_named_with_what_installs_it() -> None:
    with pytest.raises(MissingPeer, match=r"psycopg_pool \(No module .*pip install 'psycopg\[binary,pool\]'"):
        peers.check(peers.PEERS)


@pytest.mark.usefixtures("without_psycopg")
def test_with_a_missing_peer_nothing_is_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.main(["quick", "--out", str(tmp_path)]) == 2
    assert "psycopg_pool" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_peer_that_a_scenario_names_is_registered() -> None:
    named = {*churn.PEERS.values(), *steady.PEERS.values(), steady.LEAST, *rotation.PEERS} - {rotation.CONTROL}
    assert named == set(peers.PEERS)
    peers.check(peers.PEERS)


def test_no_repr_shows_a_password() -> None:
    assert "secret" not in repr(WHERE)
    assert Where.of_message(json.loads(json.dumps(WHERE.as_message()))) == WHERE


async def test_a_run_counts_operations_and_takes_the_latency_of_each() -> None:
    done = 0

    async def operation() -> None:
        nonlocal done
        done += 1
        await asyncio.sleep(0)

    result = await run(operation, tasks=3, seconds=0.02, ticking=True)
    assert result["operations"] == done == sum(result["per_task"]) == len(latencies(result))
    assert len(result["per_task"]) == 3
    assert result["seconds"] >= 0.02
    assert result["stall"] >= 0


async def test_a_blocked_event_loop_shows_as_a_stall() -> None:
    import time

    async def operation() -> None:
        await asyncio.sleep(0.002)
        time.sleep(0.03)

    assert (await run(operation, tasks=1, seconds=0.05, ticking=True))["stall"] >= 0.025


async def test_a_load_counts_errors_by_their_kind_and_what_was_served() -> None:
    calls = 0

    async def waited() -> float:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise ConnectionError("gone")
        return 0.004

    load = Load(waited, tasks=1)
    while calls < 6:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
    result = await load.stop()
    assert result["errors"] == {"ConnectionError": (calls + 1) // 2}
    assert set(latencies(result)) == {4.0}


async def test_a_worker_that_fails_says_whose_and_why() -> None:
    async with RemoteWorker(name="nobody") as worker:
        with pytest.raises(WorkerFailed, match="nobody: open: KeyError: 'no such peer'"):
            await worker.ask("open", peer="no such peer", where=WHERE.as_message())


async def test_every_peer_does_what_it_is_measured_for() -> None:
    async with EmbeddedPostgres(max_connections=60) as server:
        pair = await server.create_accounts()
        odd, even = (Account(one.username, one.password.reveal()) for one in pair.credentials())
        where = Where(server.host, server.port, "postgres", odd, even)
        for name in peers.PEERS:
            churns = peers.PEERS[name].kind == "Churn"
            async with RemoteWorker(name=name) as worker:
                await worker.ask("open", peer=name, where=where.as_message(), size=2, store_latency=0.0)
                for operation in ("churn",) if churns else ("hold", "select", "rows"):
                    figures = await worker.ask("run", operation=operation, tasks=2, seconds=0.02)
                    assert figures["operations"] >= 1, name
                    assert figures["cpu"] >= 0, name
                await worker.ask("close")


def _runs(rates: list[float], cpu: float, stall: float = 0.001) -> list[dict[str, Any]]:
    return [
        {"operations": int(rate), "seconds": 1.0, "cpu": cpu * rate, "server_cpu": 0.0, "stall": stall}
        for rate in rates
    ]


def _churned(asyncpgs_stall: float, stall: float) -> dict[str, Any]:
    runs = {name: _runs([100, 200, 100], 0.002, asyncpgs_stall) for name in (churn.REFERENCE, churn.CONTROL)}
    runs |= {churn.OURS: _runs([150, 300, 110], 0.0008, stall), churn.PSYCOPG: _runs([50, 100, 50], 0.003)}
    return churn.summarize(runs, runs)


def test_churn_is_judged_by_medians_of_the_rounds() -> None:
    points = [
        {"tasks": 8, "how": "SCRAM", "loop": "asyncio", "peers": _churned(0.005, 0.003)},
        {"tasks": 8, "how": churn.ITERATIONS, "loop": "asyncio", "peers": _churned(0.105, 0.004)},
    ]
    judged = churn.judge(points)
    assert [round(one.ratio, 3) for one in judged] == [1.5, 3.0, 0.4, 0.01]
    assert all(one.verdict == "hit" for one in judged)
    assert "| asyncpg.connect again |" in report.churn_section({"points": points}, {})


def test_a_control_that_is_too_wide_is_said_so() -> None:
    assert report.warning(Spread(1.0, 0.7, 1.3, 15), "two of asyncpg").startswith(
        "\n**The control's spread is too wide"
    )
    assert report.warning(Spread(1.0, 0.95, 1.05, 15), "two of asyncpg") == ""
    assert "| miss |" in report.targets([Judged(Target("speed", 1.4), 1.0, 0.05)])


async def test_a_fleets_page_is_filled_from_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SIZES", (4, 5))
    monkeypatch.setattr(fleet, "SWEEP_SIZE", 8)
    result = await fleet.measure(Plan.brief(), silent)
    page = fleet_report.page(result)
    assert "Which lifetime and interval for which fleet" in page
    assert "| 5 |" in page
    assert "series" not in report.without_series(result)["scenes"]["5: one rotation"]


@pytest.mark.parametrize("words", [["--pairs", "0"], ["--pairs", "-1"], ["--repetitions", "0"], ["--pairs", "x"]])
def test_a_count_that_measures_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.arguments(words)
    assert words[0] in capsys.readouterr().err


def test_the_full_run_has_fifteen_pairs_and_tails_of_fifty_thousand() -> None:
    plan = program.plan_of(program.arguments([]))
    assert plan.pairs >= 15
    assert plan.tail >= 50_000
    assert program.plan_of(program.arguments(["quick"])).quick
    assert program.plan_of(program.arguments(["churn", "--pairs", "3"])).pairs == 3


async def test_a_server_at_a_distance_answers_later_and_in_order() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1")
    where = Where(*server.sockets[0].getsockname()[:2], "postgres", Account("a", "b"), Account("c", "d"))
    async with server, at_distance(where, 0.02) as far:
        reader, writer = await asyncio.open_connection(far.host, far.port)
        began = time.perf_counter()
        for number in range(100):
            writer.write(b"%03d" % number)
        assert await reader.readexactly(300) == b"".join(b"%03d" % number for number in range(100))
        assert time.perf_counter() - began >= 0.04
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_every_target_of_the_steady_scenario_is_at_a_point_that_is_measured() -> None:
    assert {point for point, *_ in steady.TARGETS} <= set(steady.points_of(Plan()))
    assert steady.titled(steady.FAR) == "`SELECT 1`, 1 task on 10 connections, asyncio, round trip 10 ms"
