"""Faults 21 and 27 to 29: the machine gives no space, no files, no time and no network. Numbers as in the table."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full, /proc and LD_PRELOAD are of Linux"),
]


def test_fault_21_no_space_for_the_log(start: Any, eventually: Eventually) -> None:
    """What is served goes on, and so does a new engine, which has something to write too."""
    server = start()
    size = server.log_path.stat().st_size
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, size))
    server.whole()
    os.kill(server.engine_pid(), signal.SIGKILL)
    eventually(lambda: server.metric("twofour:engine_restarts_total") == 1 and server.ready(), 60)
    server.whole()
    assert server.log_path.stat().st_size == size


def test_fault_27_no_files_left(start: Any, eventually: Eventually) -> None:
    """More connections than there may be open files: the oldest are cut, and probes are answered throughout."""
    server = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    with ExitStack() as connections:
        for _ in range(200):
            connections.enter_context(socket.create_connection(server.address))
        assert server.get("/health").status_code == 200
        assert server.fds + 10 < server.open_fds() < 64, "some are kept, and there are files left"
    assert server.get("/health").status_code == 200
    server.whole()


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, at);
    long jump = 0;
    FILE *file = id == CLOCK_REALTIME ? fopen(JUMP, "r") : 0;
    if (file) { if (fscanf(file, "%ld", &jump) == 1) at->tv_sec += jump; fclose(file); }
    return status;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_fault_28_the_clock_jumps(start: Any, tmp_path: Path) -> None:
    """An hour and a day, both ways, within a stream: it goes on, and no duration is negative."""
    jump, library = tmp_path / "jump", tmp_path / "shim.so"
    (tmp_path / "shim.c").write_text(SHIM)
    build = ["cc", "-shared", "-fPIC", f'-DJUMP="{jump}"', "-o", str(library), str(tmp_path / "shim.c"), "-ldl"]
    subprocess.run(build, check=True)
    server = start(env={"LD_PRELOAD": str(library)})
    for seconds in (3600, -3600, 86400, -86400):
        with server.stream(max_tokens=300) as stream:
            jump.write_text(str(seconds))
            documents = stream.rest()
        assert documents[-1]["choices"][0]["finish_reason"] == "length"
        assert abs(documents[0]["created"] - server.complete(prompt="a").json()["created"]) > 3000
    lines = [line for line in server.get("/metrics").text.splitlines() if "_seconds_sum" in line]
    assert lines and all(0 <= float(line.rpartition(" ")[2]) < 3000 for line in lines)
    server.whole()


def test_fault_29_nothing_else_can_be_reached(start: Any) -> None:
    """A hub, a proxy and a collector that do not exist."""
    nowhere = "http://127.0.0.1:9"
    names = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "OTEL_EXPORTER_OTLP_ENDPOINT")
    start(env={**dict.fromkeys(names, nowhere), "HF_HUB_OFFLINE": "0"}).whole()
