"""Many requests, and many connections at once: memory before and after, refusals, and whether the service lives on."""

import http.client
import time
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil

from benchmarks.services.contenders import Body, Service, is_ready
from benchmarks.services.http_load import load

REQUESTS = 100_000
WARM_UP_REQUESTS = 2_000
CONNECTIONS = 64
CROWD = 1_000
PROBES = 8
_ROUND_S = 10


def endure(service: Service, requests: int, crowd_s: int) -> dict[str, Any]:
    """Post many requests to a service that has just started, then come with `CROWD` connections.

    Args:
        service: It runs.
        requests: How many at least, after the warm-up.
        crowd_s: Seconds that the crowd stays.

    Returns:
        `statuses` and `failures` of the requests; `memory_mb`, resident memory of all processes of the service `before`
        and `after` them and `after_crowd`; `crowd`: see `come_with_crowd`.
    """
    body = service.contender.body
    post_many(service, body, WARM_UP_REQUESTS)
    memory_mb = {"before": measure_memory(service)}
    start_s = time.perf_counter()
    statuses, failures = post_many(service, body, requests)
    seconds = time.perf_counter() - start_s
    memory_mb["after"] = measure_memory(service)
    crowd = come_with_crowd(service, crowd_s)
    memory_mb["after_crowd"] = measure_memory(service)
    return {
        "contender": service.contender.title,
        "connections": CONNECTIONS,
        "seconds": seconds,
        "statuses": dict(statuses),
        "failures": failures,
        "memory_mb": memory_mb,
        "crowd": crowd,
    }


def post_many(service: Service, body: Body, requests: int) -> tuple[Counter[str], int]:
    """Post in rounds until so many requests are answered; return the answers by status, and the failures."""
    statuses: Counter[str] = Counter()
    failures = 0
    while statuses.total() < requests:
        found = load(service.address, body, CONNECTIONS, _ROUND_S if requests > WARM_UP_REQUESTS else 2)
        if not found["statuses"]:
            raise RuntimeError(f"{service.contender.title} no longer answers")
        statuses.update(found["statuses"])
        failures += found["failures"]
        print(f"{CONNECTIONS} connections: {statuses.total():,} of {requests:,} requests", flush=True)
    return statuses, failures


def measure_memory(service: Service) -> float:
    """Return the resident memory of all processes of a service, MB."""
    first = psutil.Process(service.process.pid)
    return sum(process.memory_info().rss for process in (first, *first.children(recursive=True))) / 1e6


def come_with_crowd(service: Service, seconds: int) -> dict[str, Any]:
    """Load a service with `CROWD` connections, and ask it from a few more how long an answer takes.

    Returns:
        `statuses`, `failures` and `requests_per_s` (2xx) of the crowd; `probes`, for each status n, median and 99th
        percentile of the latency in ms; `is_alive` and `answers`, whether the process runs and predicts afterwards.
    """
    end_s = time.perf_counter() + seconds
    with ThreadPoolExecutor(PROBES) as threads:
        probes = [threads.submit(probe, service, end_s) for _ in range(PROBES)]
        found = load(service.address, service.contender.body, CROWD, seconds)
        answers = [answer for future in probes for answer in future.result()]
    return {
        "connections": CROWD,
        "statuses": found["statuses"],
        "failures": found["failures"],
        "requests_per_s": found["requests_per_s"],
        "probes": summarise_probes(answers),
        "is_alive": service.process.poll() is None,
        "answers": is_ready(service) and [status for status, _ in probe(service, 0.0)] == ["200"],
    }


def probe(service: Service, end_s: float) -> list[tuple[str, float]]:
    """Ask over one connection until the time, once at least; return the statuses, `failed` or a number, and ms."""
    url, body = urllib.parse.urlsplit(service.address), service.contender.body
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=10)
    answers = []
    while True:
        start_s = time.perf_counter()
        try:
            connection.request("POST", f"{url.path}?{url.query}", body.data, {"Content-Type": body.content_type})
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException):
            # The next request connects anew.
            connection.close()
            status = "failed"
        answers.append((status, 1e3 * (time.perf_counter() - start_s)))
        if time.perf_counter() >= end_s:
            connection.close()
            return answers


def summarise_probes(answers: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Return for each status n, the median and the 99th percentile of the latency, ms."""
    summaries = {}
    for status in sorted({status for status, _ in answers}):
        latencies_ms = [latency_ms for other, latency_ms in answers if other == status]
        p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99))
        summaries[status] = {"n": len(latencies_ms), "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}
    return summaries
