"""Load over HTTP by `wrk`, and what came of it."""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.services.contenders import Body

# So long the service works off what was open at the end, which else would be refused or paid for by the next load.
_WORK_OFF_S = 1.0
# Its own report rounds; the line that this writes to stderr last does not.
_SCRIPT = """
local file = io.open("{data}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "{content_type}"
local worker
function setup(thread) worker = thread end
statuses = {{}}
function response(status) statuses[status] = (statuses[status] or 0) + 1 end
function done(summary, latency)
  local counts, errors = {{}}, summary.errors
  for status, count in pairs(worker:get("statuses")) do
    table.insert(counts, string.format('"%d": %d', status, count))
  end
  io.stderr:write(string.format(
    '\\n{{"statuses": {{%s}}, "failures": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f}}',
    table.concat(counts, ", "), errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def load(address: str, body: Body, connections: int, seconds: float) -> dict[str, Any]:
    """Post a body over and over and return what came of it.

    Returns:
        `requests_per_s` that were answered 2xx; `p50_ms` and `p99_ms` of all answers; `statuses`, the number of
        answers by status; `failures`, connections that broke or requests without an answer in ten seconds; `seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, script = Path(folder) / "body", Path(folder) / "post.lua"
        data.write_bytes(body.data)
        script.write_text(_SCRIPT.format(data=data, content_type=body.content_type), encoding="utf-8")
        command = [
            "wrk",
            "--timeout",
            "10s",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:.0f}s",
            "-s",
            str(script),
            address,
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    time.sleep(_WORK_OFF_S)
    return read_figures(said)


def read_figures(said: str) -> dict[str, Any]:
    """Return the figures in what wrk wrote to stderr, with the rate of the 2xx."""
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return {"requests_per_s": count_good(found["statuses"]) / found["seconds"], **found}


def count_good(statuses: dict[str, int]) -> int:
    """Return how many answers were 2xx."""
    return sum(count for status, count in statuses.items() if status.startswith("2"))


def count_refused(found: dict[str, Any]) -> int:
    """Return how many requests of a load had another answer or none."""
    return int(sum(found["statuses"].values()) - count_good(found["statuses"]) + found["failures"])
