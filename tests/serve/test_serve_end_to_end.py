"""The verb with the real engine: a tiny random model, a process, a socket, real signals."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import APIError, InternalServerError, OpenAI
from transformers import LlamaConfig, LlamaForCausalLM

PROGRAM = """
import argparse, sys
from twofour.prune.errors import TwofourError
from twofour.serve.commands.serve import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
try:
    sys.exit(run(parser.parse_args()))
except TwofourError as error:
    sys.exit(str(error))
"""
ASK: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=byte_tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def server(model: Path) -> Iterator["Server"]:
    server = Server(model)
    yield server
    server.close()


class Server:
    """`twofour serve`, as a supervisor runs it."""

    def __init__(self, model: Path, *flags: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(model), "--port", "0", "--threads", "1", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.strip().startswith("curl"):
                break
        found = re.search(r"http://[\d.:]+", self.said)
        assert found, self.process.communicate()[1]
        self.url = found[0]

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def engine_pid(self) -> int:
        own = self.process.pid
        children = [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
        return next(pid for pid in children if b"engine.child" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def test_a_life(server: Server) -> None:
    """Load, answer the official client, and on SIGTERM finish the stream and end with 0."""
    assert "dense" in server.said
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.completions.create(model="tiny", prompt="hi", max_tokens=60, temperature=0)
        schema: Any = {"name": "colour", "schema": {"enum": ["red", "green"]}}
        asked: Any = {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": schema}}
        assert client.chat.completions.create(model="tiny", **asked).choices[0].message.content in ('"red"', '"green"')
        options: Any = {"model": "tiny", "max_tokens": 60, "temperature": 0, "stream": True}
        stream = client.completions.create(prompt="hi", **options)
        text = next(stream).choices[0].text
        server.process.send_signal(signal.SIGTERM)
        for chunk in stream:
            text += chunk.choices[0].text
    assert text == whole.choices[0].text
    status, errors = server.end()
    assert status == 0, errors
    assert "Traceback" not in errors


def test_the_death_of_the_engine_is_an_error_and_not_the_end(server: Server) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True, n=2, seed=1)
        next(iter(stream))
        os.kill(server.engine_pid(), signal.SIGKILL)
        with pytest.raises(APIError, match="not ready"):
            list(stream)
        with pytest.raises(InternalServerError, match="not ready") as refused:
            client.chat.completions.create(model="tiny", messages=ASK)
        assert refused.value.response.headers["retry-after"] == "1"
        while httpx.get(f"{server.url}/ready", trust_env=False).status_code != 200:
            time.sleep(0.05)
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3)
    assert "twofour:engine_restarts_total" in httpx.get(f"{server.url}/metrics", trust_env=False).text
    server.process.send_signal(signal.SIGTERM)
    status, errors = server.end()
    assert status == 0
    assert "killed by SIGKILL); it is started again in 1 s" in errors


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "empty"), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 1
    assert "cannot load the tokenizer" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_who_finds_what_in_the_engine(model: Path, tmp_path: Path) -> None:
    """The first of each pair computes, its repetition finds; the other of the pair finds nothing."""
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    server = Server(model, "--api-key-file", str(keys))

    def cached(key: str, **fields: Any) -> int:
        ask = {"model": "tiny", "prompt": "a" * 60, "max_tokens": 1, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{server.url}/v1/completions", json=ask, headers=headers, trust_env=False, timeout=60)
        found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    mine, other = {"cache_salt": "mine"}, {"cache_salt": "other"}
    try:
        assert [cached("first"), cached("first"), cached("second"), cached("second")] == [0, 48, 0, 48]
        assert [cached("first", **mine), cached("first", **mine), cached("first", **other)] == [0, 48, 0]
    finally:
        server.close()
