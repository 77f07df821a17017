"""Pipeline page: a scheduler's plugin that keeps what clients publish, and shows it on the dashboard.

A pipeline is one evaluation as the page shows it. The plugin travels by value to schedulers that have no
parcoll (`publish`), so this module needs the standard library, tornado and distributed only. Everything it
keeps is bounded, since a scheduler may be up for months.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict, deque
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin
from tornado import web

from parcoll.clock import time

TOPIC = "parcoll"  # of dask's events: clients publish their numbers under it
MAX_PIPELINES = 100
MAX_POINTS = 240  # of one pipeline's plot; when there are more, every second one is dropped
RECENT_POINTS = 20  # kept in addition, for the rate of the last seconds
MAX_UNSEEN = 1000  # running pipelines beyond those on the page, whose counts go on
MAX_NAMES = 100  # of pipelines that have metrics
MAX_STEP_NUMBERS = 1000  # metrics of the steps of one name, which may have other steps each time
COUNTERS = (
    *("elements_in", "elements_out", "failed", "retries", "timeouts", "deaths", "recovered"),
    *("bytes_sent", "bytes_received", "worker_seconds"),
)
VERSION = re.compile(rb"[0-9]{1,15}")
STEP_COUNTERS = ("entered", "left", "failed", "retries", "seconds")
# The page loads nothing from elsewhere, and text that users wrote is never markup.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Plot:
    """Points (time, elements done) of a pipeline: evenly over its whole life, and closer at its end."""

    def __init__(self, started: float) -> None:
        self.thinned: list[list[float]] = [[started, 0]]
        self.recent: deque[list[float]] = deque()
        self.gap = 0.0  # seconds between two points that are kept

    def add(self, now: float, done: int) -> list[list[float]]:
        """Add a point, and return all points that are kept."""
        self.recent.append([now, done])
        if len(self.recent) > RECENT_POINTS:
            oldest = self.recent.popleft()
            if oldest[0] - self.thinned[-1][0] >= self.gap:
                self.thinned.append(oldest)
        if len(self.thinned) > MAX_POINTS:
            del self.thinned[1::2]
            self.gap = (self.thinned[-1][0] - self.thinned[0][0]) / len(self.thinned)
        return [*self.thinned, *self.recent]


class Page(SchedulerPlugin):
    """The plugin. It keeps the last 100 pipelines of all clients, whether a client is still there or not."""

    name = "parcoll-page"
    idempotent = True

    def __init__(self, html: str) -> None:
        self.html = html
        self.version = 0  # counts what was published, so that a page may ask for what is new
        self.pipelines: OrderedDict[str, dict[str, Any]] = OrderedDict()  # the last published at the end
        self.plots: dict[str, Plot] = {}  # of these pipelines
        self.unseen: OrderedDict[str, dict[str, Any]] = OrderedDict()  # counts of others that still run
        self.totals: OrderedDict[str, dict[tuple[str, ...], float]] = OrderedDict()  # by name, for metrics
        self.metrics: Any = None

    async def start(self, scheduler: Any) -> None:
        """Add the routes, under whatever prefix the dashboard has."""
        self.scheduler = scheduler
        routes = [
            (r"/(?:.+/)?parcoll", PageHandler, {"page": self}),
            (r"/(?:.+/)?parcoll/json", JSONHandler, {"page": self}),
        ]
        scheduler.http_application.add_handlers(".*$", routes)
        try:
            from prometheus_client import REGISTRY
        except ImportError:
            return
        self.metrics = Metrics(self)
        REGISTRY.register(self.metrics)

    async def close(self) -> None:
        """Take the metrics back, since the process may start another scheduler."""
        if self.metrics is not None:
            from prometheus_client import REGISTRY

            REGISTRY.unregister(self.metrics)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take in what a client published."""
        if topic == TOPIC:
            self.publish(msg)

    def publish(self, message: dict[str, Any]) -> None:
        """Put the numbers of a pipeline in the place of its earlier ones."""
        key, now = message["id"], time.time()
        before = self.pipelines.pop(key, None) or self.unseen.pop(key, {})
        plot = self.plots.setdefault(key, Plot(message["started"]))
        points = plot.add(message["ended"] or now, message["elements_in"])
        self.version += 1
        self.pipelines[key] = message | {"points": points, "heard": now, "version": self.version}
        self.count(message, before)
        while len(self.pipelines) > MAX_PIPELINES:
            self.drop_one()

    def drop_one(self) -> None:
        """Stop showing one pipeline: one that has ended, or else the one that was heard of longest ago."""
        ended = (key for key, kept in self.pipelines.items() if kept["state"] != "running")
        key = next(ended, next(iter(self.pipelines)))
        dropped = self.pipelines.pop(key)
        del self.plots[key]
        if dropped["state"] == "running":
            self.unseen[key] = {name: dropped.get(name, 0) for name in (*COUNTERS, "steps", "client_id")}
        while len(self.unseen) > MAX_UNSEEN:
            self.unseen.popitem(last=False)

    def count(self, message: dict[str, Any], before: dict[str, Any]) -> None:
        """Add what is new in a pipeline's numbers to the totals of all pipelines of its name."""
        totals = self.totals.setdefault(message["name"], {})
        self.totals.move_to_end(message["name"])
        for name in COUNTERS:
            totals[(name,)] = totals.get((name,), 0) + message.get(name, 0) - before.get(name, 0)
        earlier = before.get("steps") or [{}] * len(message["steps"])
        for number, (step, old) in enumerate(zip(message["steps"], earlier, strict=False), 1):
            for name in STEP_COUNTERS:
                key = ("step", name, f"{number} {step['label']}")
                totals[key] = totals.pop(key, 0) + step[name] - old.get(name, 0)
        for oldest in list(totals)[len(COUNTERS) : -MAX_STEP_NUMBERS]:  # those that were added to longest ago
            del totals[oldest]
        while len(self.totals) > MAX_NAMES:
            self.totals.popitem(last=False)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Mark the client's running pipelines as lost: nobody will tell of them any more."""
        for key in [key for key, counted in self.unseen.items() if counted["client_id"] == client]:
            del self.unseen[key]
        for pipeline in self.pipelines.values():
            if pipeline["client_id"] == client and pipeline["state"] == "running":
                self.version += 1
                now = time.time()
                pipeline.update(state="lost", ended=now, version=self.version)

    def news(self, since: int) -> dict[str, Any]:
        """Return the pipelines that were published after version `since`, and the ids of all."""
        workers = self.scheduler.workers.values()
        kept = sorted(self.pipelines.values(), key=lambda one: (one["state"] == "running", one["started"]))
        return {
            "version": self.version,
            "now": time.time(),
            "scheduler": self.scheduler.address,
            "workers": len(workers),
            "threads": sum(worker.nthreads for worker in workers),
            "busy": sum(min(len(worker.processing), worker.nthreads) for worker in workers),
            "order": [pipeline["id"] for pipeline in reversed(kept)],
            "pipelines": [pipeline for pipeline in reversed(kept) if pipeline["version"] > since],
        }


class PageHandler(web.RequestHandler):
    """The page itself, which then asks for the numbers."""

    def initialize(self, page: Page) -> None:
        """Remember the plugin."""
        self.page = page

    def get(self) -> None:
        """Answer with the page."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")
        self.write(self.page.html)


class JSONHandler(web.RequestHandler):
    """The numbers of all pipelines, or of those published after the version `since`."""

    def initialize(self, page: Page) -> None:
        """Remember the plugin."""
        self.page = page

    def get(self) -> None:
        """Answer with the numbers."""
        given = self.request.query_arguments.get("since", [b"0"])
        if len(given) != 1 or not VERSION.fullmatch(given[0]):
            self.set_status(400)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish("since must be a whole number, the version of an earlier answer\n")
            return
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(self.page.news(int(given[0]))))


class Metrics:
    """The totals for Prometheus, if the scheduler has its client library."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def describe(self) -> list[Any]:
        """Return nothing: in a process with two schedulers all names would be there twice."""
        return []

    def collect(self) -> Any:
        """Yield the current metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        totals = self.page.totals
        for name in COUNTERS:
            text = f"{name.replace('_', ' ')} of all runs of a pipeline"
            family = CounterMetricFamily(f"parcoll_{name}", text, labels=["pipeline"])
            for pipeline, numbers in totals.items():
                family.add_metric([pipeline], numbers[(name,)])
            yield family
        for name in STEP_COUNTERS:
            text = f"{name} of a step in all runs of a pipeline"
            family = CounterMetricFamily(f"parcoll_step_{name}", text, labels=["pipeline", "step"])
            for pipeline, numbers in totals.items():
                for key, number in numbers.items():
                    if key[:2] == ("step", name):
                        family.add_metric([pipeline, key[2]], number)
            yield family
        states = [pipeline["state"] for pipeline in self.page.pipelines.values()]
        gauge = GaugeMetricFamily("parcoll_pipelines", "pipelines on the page", labels=["state"])
        for state in sorted(set(states)):
            gauge.add_metric([state], states.count(state))
        yield gauge
