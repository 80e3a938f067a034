"""Looks at a server each second while it is under load, in a process of its own, so that the client loses no time.

The process gets the endpoint through its standard input, which no list of processes shows, and looks until that ends.
"""

import json
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from twofour.bench import meters
from twofour.bench.load import wire
from twofour.bench.load.access import Access
from twofour.bench.load.endpoint import Endpoint, Memory
from twofour.bench.load.server_side import Held, Sample, ServerSide, named
from twofour.prune.errors import ServerError

EVERY_S = 1.0
_END_S = 30.0


class Looker:
    """Looks between `begin` and the end of its `with` block, where there is something to see."""

    def __init__(self, endpoint: Endpoint) -> None:
        to = wire.target(endpoint.url)
        self._endpoint, self._port, self._here = endpoint, to.port, meters.is_here(to.host)
        self._process: subprocess.Popen[bytes] | None = None
        self._samples: list[Sample] = []

    def __enter__(self) -> "Looker":
        return self

    def begin(self, served: bool) -> None:
        """served: the server has /metrics. Returns when it has looked for the first time."""
        metered = self._here and meters.Meters().any
        if not served and not metered:
            return
        command = [sys.executable, "-P", "-m", "twofour.bench.load.polling"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"endpoint": asdict(self._endpoint) if served else None, "metered": metered}
        self._process.stdin.write(json.dumps(asked, default=str).encode() + b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        if self._process:
            with self._process as process:
                told = process.communicate(timeout=_END_S)[0]
            self._samples = [Sample(**each) for each in json.loads(told or b"[]")]

    def seen(self, memory: Memory | None) -> ServerSide | None:
        """What was seen, with the memory that the server itself says it holds; None: nothing."""
        held = Held(
            memory.weight_bytes if memory else None,
            memory.kv_capacity_tokens if memory else None,
            memory.device_peak_bytes if memory else None,
            self._samples[-1].gpu_used_bytes if self._samples else None,
            meters.resident_bytes(self._port) if self._here else None,
        )
        return ServerSide(self._samples, held) if self._samples or held != Held() else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client's Ctrl-C ends our input
    asked = json.loads(sys.stdin.buffer.readline())
    endpoint, counters = _endpoint(asked["endpoint"]), meters.Meters() if asked["metered"] else None
    samples, due_at = [look(endpoint, counters)], perf_counter() + EVERY_S
    print("looking", flush=True)
    while not select.select([sys.stdin], [], [], max(0.0, due_at - perf_counter()))[0]:
        samples.append(look(endpoint, counters))
        due_at = max(due_at + EVERY_S, perf_counter())
    samples.append(look(endpoint, counters))
    print(json.dumps([asdict(sample) for sample in samples]))


def _endpoint(told: dict[str, Any] | None) -> Endpoint | None:
    if told is None:
        return None
    opened = told["access"]
    file = None if opened["ca_file"] is None else Path(opened["ca_file"])
    return Endpoint(**told | {"access": Access(**opened | {"ca_file": file})})


def look(endpoint: Endpoint | None, counters: meters.Meters | None) -> Sample:
    """Its time is that of the answer; a server that does not answer has said nothing."""
    try:
        said = (endpoint.metrics() if endpoint else None) or ""
    except ServerError:
        said = ""
    at, read = perf_counter(), counters.read() if counters else meters.Reading()
    known: dict[str, Any] = {}
    with suppress(ValueError):  # no text of Prometheus
        known.update(named(said))
    return Sample(at, **known, **asdict(read))


if __name__ == "__main__":
    main()
