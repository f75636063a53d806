"""The Prometheus example is really scraped, and alert rules and dashboard ask for nothing that it does not export."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from aiopqr.integrations._metrics import HISTOGRAMS, OBSERVED
from aiopqr.testing.server import run_apart

EXAMPLES = Path(__file__).parents[2] / "examples"
MONITORING = EXAMPLES / "monitoring"

Series = dict[str, set[str]]  # the names of what is exported, and the labels of each

# What Prometheus adds to everything that it scrapes, and the label of a histogram's buckets.
OF_PROMETHEUS = {"job", "instance"}
FUNCTIONS = {"histogram_quantile", "increase", "max", "min", "rate", "sum"}
WORDS = {"and", "by", "on"}


EXPIRES_IN = "aiopqr_account_expires_in"


async def scrape() -> tuple[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLES / "prometheus_metrics.py"), "--serve"), stdout=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().removeprefix("serving ").strip()
            async with httpx.AsyncClient() as client:
                text = ""
                while "aiopqr_replacements_total{" not in text:  # everything that is counted by reason has happened
                    text = (await client.get(url)).raise_for_status().text
            process.send_signal(signal.SIGTERM)
            return text, await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def scraped() -> str:
    text, ended = run_apart(scrape())
    assert ended == 0
    return text


@pytest.fixture
def series(scraped: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # Only present if passwords expire, and those of the example do not.
    found[f"{EXPIRES_IN}_seconds"] = found["aiopqr_account_refused_time_seconds"]
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        yield from group["rules"]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((MONITORING / "grafana_dashboard.json").read_text())["panels"]
    return found


def queries() -> list[str]:
    return [rule["expr"] for rule in rules()] + [one["expr"] for panel in panels() for one in panel["targets"]]


def problems(query: str, series: Series) -> list[str]:
    """What a query asks for that does not exist. This parses only as much PromQL as these queries use."""
    wrong: list[str] = []
    grouped = {label for inner in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in re.split(r",\s*", inner)}
    text = re.sub(r"\b(by|on) \([^)]*\)", " ", query)
    metrics: list[str] = []
    for name, matchers in re.findall(
        r"([a-zA-Z_]\w*)(?:\{([^}]*)\})?(?![\w(])(?!\s*\()", re.sub(r"\[[^]]*\]", "", text)
    ):
        if name in WORDS:
            continue
        metrics.append(name)
        if name not in series:
            wrong.append(f"no metric {name}")
            continue
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        wrong += [f"{name} has no label {label}" for label in used - series[name] - OF_PROMETHEUS]
    for label in grouped - OF_PROMETHEUS:
        wrong += [f"{name} has no label {label}" for name in metrics if name in series and label not in series[name]]
    wrong += [f"no function {name}" for name in re.findall(r"(\w+)\s*\(", text) if name not in FUNCTIONS | WORDS]
    wrong += [f"unbalanced {pair}" for pair in ("()", "{}", "[]") if query.count(pair[0]) != query.count(pair[1])]
    return wrong if metrics else [*wrong, "no metric at all"]


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_what_is_exported(query: str, series: Series) -> None:
    assert problems(query, series) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("aiopqr_fallbacks > 0", "no metric aiopqr_fallbacks"),
        ("rate(aiopqr_nothing_total[5m])", "no metric aiopqr_nothing_total"),
        ('aiopqr_fallbacks_total{account="odd"}', "aiopqr_fallbacks_total has no label account"),
        ("sum by (aiopqr_account) (aiopqr_fallbacks_total)", "aiopqr_fallbacks_total has no label aiopqr_account"),
        ("summe(aiopqr_fallbacks_total)", "no function summe"),
        ("sum(aiopqr_fallbacks_total", "unbalanced ()"),
        ("1 > 0", "no metric at all"),
    ],
)
def test_a_query_that_asks_for_something_else_is_found_out(query: str, problem: str, series: Series) -> None:
    assert problem in problems(query, series)


def test_what_the_example_serves_is_all_that_the_library_exports(series: Series) -> None:
    for metric in (*OBSERVED, *HISTOGRAMS):
        name = metric.name.replace(".", "_")
        assert any(found.startswith(name) for found in series), metric.name


def test_every_metric_of_ours_that_only_tells_of_trouble_is_on_the_dashboard() -> None:
    shown = " ".join(one["expr"] for panel in panels() for one in panel["targets"])
    for metric in (*OBSERVED, *HISTOGRAMS):
        if metric.name not in {
            "db.client.connection.idle.max",
            "db.client.connection.idle.min",
            "aiopqr.account.logins",
            "aiopqr.pair.accounts",
        }:
            assert metric.name.replace(".", "_") in shown, metric.name


def test_the_dashboards_pool_is_chosen_from_what_is_exported(series: Series) -> None:
    dashboard = json.loads((MONITORING / "grafana_dashboard.json").read_text())
    (query,) = (one["query"] for one in dashboard["templating"]["list"] if one["name"] == "pool")
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
    assert label in series[metric]
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_alerts_show_only_labels_that_their_expression_keeps(series: Series) -> None:
    for rule in rules():
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"])))) or {
            label for name, labels in series.items() if name in rule["expr"] for label in labels
        }
        text = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "summary" in rule["annotations"]


def test_metrics_show_no_username_and_no_password(scraped: str) -> None:
    assert not re.search(r"app_[0-9a-f]{8}", scraped)
