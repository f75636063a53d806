"""A pool's metrics for Prometheus: OpenTelemetry's exporter serves them at /metrics.

    python examples/prometheus_metrics.py            # changes a password, shows what Prometheus would scrape, and ends
    python examples/prometheus_metrics.py --serve    # serves until it is interrupted

Alert rules and a Grafana dashboard for these metrics are in examples/monitoring. This example starts its own Postgres.
Needs: pip install 'aiopqr[opentelemetry,testing]' opentelemetry-sdk opentelemetry-exporter-prometheus
"""

from __future__ import annotations

import asyncio
import signal
import sys
import urllib.request

import prometheus_client
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

import aiopqr
from aiopqr.integrations.opentelemetry import instrument
from aiopqr.testing import EmbeddedPostgres, RotatingPostgres


async def work(pool: aiopqr.AlternatingPool) -> None:
    while True:
        await pool.fetchval("select pg_sleep(0.01)")


async def serve(database: RotatingPostgres, *, until_interrupted: bool) -> None:
    meters = MeterProvider([PrometheusMetricReader()])
    http, _ = prometheus_client.start_http_server(0, "127.0.0.1")  # choose a port instead of 0
    url = f"http://127.0.0.1:{http.server_port}/metrics"
    print(f"serving {url}", flush=True)

    pool = aiopqr.create_pool(
        database.dsn, credentials=database.source, name="orders", min_size=2, max_size=5, max_lifetime=0.5
    )
    async with pool:
        instrument(pool, meter_provider=meters)
        working = [asyncio.create_task(work(pool), name=f"work-{n}") for n in range(4)]
        await database.rotate("odd")
        if until_interrupted:
            interrupted = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
            await interrupted.wait()
        else:
            await asyncio.sleep(2.0)
            with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
                lines = answer.read().decode().splitlines()
            print(
                *(line for line in lines if line.startswith(("db_client", "aiopqr")) and "_bucket" not in line),
                sep="\n",
            )
        for task in working:
            task.cancel()
        ended = await asyncio.gather(*working, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended

    http.shutdown()
    http.server_close()
    meters.shutdown()


async def main() -> None:
    async with EmbeddedPostgres() as server:
        await serve(await RotatingPostgres.create(server), until_interrupted="--serve" in sys.argv)


if __name__ == "__main__":
    asyncio.run(main())
