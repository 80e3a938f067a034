"""Faults 2, 5 to 9, 19, 26 and 31: beginnings and ends of a server. The numbers are those of the table of faults."""

import os
import shutil
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import alive

from twofour.serve.app import PATHS

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
OPEN = {"/", "/health", "/ready", "/metrics"}  # a static page, and probes
pytestmark = pytest.mark.slow


def test_fault_02_the_server_is_killed(start: Any, eventually: Eventually) -> None:
    server = start()
    engine, port = server.engine_pid(), server.address[1]
    with pytest.raises(Exception, match=r"peer closed|reset"), server.stream() as stream:
        server.process.kill()
        stream.rest()
    server.end()
    eventually(lambda: not alive(engine), 5)
    again = start("--port", str(port))
    assert again.golden == server.golden
    again.whole()


@pytest.mark.parametrize("fault", ["missing", "invalid", "flag", "context"])
def test_fault_05_what_cannot_be_served(start: Any, tmp_path: Path, roomy_model_folder: Path, fault: str) -> None:
    broken = tmp_path / "broken"
    if fault == "invalid":
        broken.mkdir()
        for file in roomy_model_folder.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "config.json").write_text("{")
    flags = {"flag": ["--threads", "0"], "context": ["--max-model-len", "999999"]}
    model = broken if fault in ("missing", "invalid") else roomy_model_folder
    server = start.launch(*flags.get(fault, []), model=model, env={"HF_HUB_OFFLINE": "1"})
    assert server.end() not in (0, None)
    last = server.log.strip().splitlines()[-1]
    named = {"missing": "broken", "invalid": "config", "flag": "--threads", "context": "999999"}
    assert named[fault] in last and "Traceback" not in server.log, server.log
    assert "ready at" not in (server.process.stdout.read() or "")


def test_fault_06_the_port_is_taken(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start.launch("--port", str(port))
        assert server.end() not in (0, None)
    assert f"cannot listen on 127.0.0.1 port {port}" in server.log
    assert "loading" not in server.log.lower()


def test_fault_07_sigterm_while_streaming(start: Any, eventually: Eventually) -> None:
    """Four streams run and two wait; all of them end as if nothing had happened."""
    server = start("--max-num-seqs", "4", "--drain-s", "600")
    with ThreadPoolExecutor() as pool, ExitStack() as opened:
        streams = [opened.enter_context(server.stream(max_tokens=600)) for _ in range(4)]
        waiting = [pool.submit(server.complete, prompt="a", ignore_eos=True, max_tokens=9) for _ in range(2)]
        eventually(lambda: server.metric("vllm:num_requests_waiting") == 2, 5)
        server.signal(signal.SIGTERM)
        eventually(lambda: server.get("/ready").status_code == 503, 1)
        refused = server.complete(prompt="late")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert server.get("/health").status_code == 200
        ends = [stream.rest()[-1]["choices"][0]["finish_reason"] for stream in streams]
        assert ends == ["length"] * 4
        assert [asked.result().json()["choices"][0]["finish_reason"] for asked in waiting] == ["length"] * 2
    assert server.end() == 0
    assert "Traceback" not in server.log


def test_fault_07_a_second_sigterm(start: Any, eventually: Eventually) -> None:
    server = start("--drain-s", "600")
    engine = server.engine_pid()
    with server.stream() as stream:
        server.signal(signal.SIGTERM)
        eventually(lambda: server.get("/ready").status_code == 503, 1)
        server.signal(signal.SIGTERM)
        assert stream.rest()[-1]["error"]["code"] == "not_ready"
    assert server.end() == 0
    assert not alive(engine)


def test_fault_08_the_drain_takes_too_long(start: Any, eventually: Eventually) -> None:
    server = start("--drain-s", "0.5")
    engine = server.engine_pid()
    with server.stream(max_tokens=8000) as stream:
        server.signal(signal.SIGTERM)
        assert stream.rest()[-1]["error"]["code"] == "not_ready"
    assert server.end() == 0
    assert not alive(engine)


def test_fault_08_a_chat_template_without_end(
    start: Any, tmp_path: Path, roomy_model_folder: Path, eventually: Eventually
) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    model = Path(shutil.copytree(roomy_model_folder, tmp_path / "endless"))
    (model / "chat_template.jinja").write_text("{% if messages[0].content == 'hang' %}" + endless + "{% endif %}hello")
    server = start("--drain-s", "1", model=model)

    def chat(content: str) -> int:
        message = {"role": "user", "content": content}
        with server.client() as client:
            answer = client.post("/v1/chat/completions", json={"model": "m", "messages": [message], "max_tokens": 1})
        return int(answer.status_code)

    assert chat("hello") == 200 and chat("hang") == 400
    server.signal(signal.SIGTERM)
    eventually(lambda: server.process.poll() is not None, 20)
    assert server.end() == 0
    assert "the work for a request goes on" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_09_a_signal_while_loading(start: Any, eventually: Eventually, number: signal.Signals) -> None:
    server = start.listening()
    eventually(lambda: server.get("/health").status_code == 200, 5)
    assert server.get("/ready").status_code == 503
    engine = server.engine_pid()
    server.signal(number)
    eventually(lambda: server.process.poll() is not None, 2)
    assert server.end() == 0
    assert not alive(engine)
    assert "Traceback" not in server.log


def test_fault_19_keys(start: Any, tmp_path: Path) -> None:
    """Every route, with every kind of key."""
    (tmp_path / "keys").write_text("right\n")
    server = start("--api-key-file", str(tmp_path / "keys"), headers={"Authorization": "Bearer right"})
    keys = [None, "Bearer wrong", "Bearer RIGHT", "Bearer", "right", "Basic right"]
    with server.client() as client:
        for path in sorted(PATHS - OPEN):
            for variant in (path, f"{path}?key=right", f"{path}?api_key=right", f"{path}/", path.upper()):
                for method in ("GET", "POST", "PUT", "OPTIONS"):
                    for key in keys:
                        headers = {"Authorization": key or "", "Content-Type": "application/json"}
                        answer = client.request(method, variant, headers=headers)
                        assert answer.status_code == 401, (method, variant, key)
            right = client.request("GET", path)
            assert right.status_code in (200, 405), path
        for path in PATHS & OPEN:
            assert client.get(path, headers={"Authorization": ""}).status_code == 200
    assert "right" not in server.log
    server.whole()


def test_fault_26_more_tokens_than_the_cache_holds(start: Any, server: Server) -> None:
    """Everybody finishes, with the text of a server that has room for all."""
    small = start("--max-num-seqs", "8", "--max-model-len", "512", engine={"kv_tokens": 640})
    prompts = [f"{number} There was" for number in range(12)]
    ask = {"max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(12) as pool:
        crowded = [a.json() for a in pool.map(lambda text: small.complete(prompt=text, **ask), prompts)]
    assert small.metric("vllm:num_preemptions_total") > 0
    for prompt, answer in zip(prompts, crowded, strict=True):
        assert answer["choices"][0]["text"] == server.complete(prompt=prompt, **ask).json()["choices"][0]["text"]
    small.whole()


@pytest.mark.parametrize("garbage", [{"OMP_NUM_THREADS": "many"}, {"PYTHONHASHSEED": "0", "TWOFOUR_X": "\\x00{"}])
def test_fault_31_senseless_settings(start: Any, garbage: dict[str, str]) -> None:
    server = start(env=garbage)
    os.kill(server.process.pid, signal.SIGHUP)
    server.whole()
    assert "SIGHUP" in server.log
