"""`twofour serve --engine vllm`, a real one, in the environment that has vLLM: that of TWOFOUR_VLLM_PYTHON, or .vllm.

Its model says one text, whatever it is asked: each token leads to the next one of REPLY, and any other to the first.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from processes import alive, soon
from scripted_engine import CONTEXT, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("TWOFOUR_VLLM_PYTHON", ROOT / ".vllm" / "bin" / "python"))
REPLY = "hello wörld🤗"  # no token comes twice
STEEP = 3.0


def model(folder: Path, **changes: Any) -> Path:
    """Nothing but embeddings and lm_head: attention and the MLP add nothing."""
    tokenizer = build_tokenizer()
    script = tokenizer(REPLY, add_special_tokens=False).input_ids
    assert len(set(script)) == len(script)
    config = LlamaConfig(
        **{
            **{"vocab_size": len(tokenizer), "hidden_size": 288, "intermediate_size": 64, "num_hidden_layers": 1},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": CONTEXT},
            **{"eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False, **changes},
        }
    )
    torch.manual_seed(0)
    said = LlamaForCausalLM(config)
    with torch.no_grad():
        said.model.layers[0].self_attn.o_proj.weight.zero_()
        said.model.layers[0].mlp.down_proj.weight.zero_()
        said.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 288))
        said.lm_head.weight.copy_(STEEP * leading_to(script, tokenizer.eos_token_id, len(tokenizer)))
    said.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def leading_to(script: list[int], eos: int, tokens: int) -> torch.Tensor:
    follows = dict(zip(script, [*script[1:], eos], strict=True))
    leads = torch.zeros(tokens, 288)
    for token in range(tokens):
        leads[follows.get(token, script[0]), token] = 1
    return leads


class VllmServer:
    """The command, its address, and a client for it."""

    reply = REPLY

    def __init__(self, folder: Path, log: Path, *flags: str, passed_on: tuple[str, ...] = (), **env: str) -> None:
        named = ("--served-model-name", "m", "--threads", "1", "--port", "0")
        self.log_path = log
        with log.open("w") as errors:
            command = [PYTHON, "-P", "-m", "twofour", "serve", folder, "--engine", "vllm", *named, *flags]
            self.process = subprocess.Popen(
                [*command, "--", "--enforce-eager", *passed_on],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=log.parent,
                env={**os.environ, **quiet(log.parent), **env},
            )
        self.url, self.said = "", ""
        self.client = httpx.Client()

    def wait(self) -> "VllmServer":
        """Until it is ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith("ready at"):
                break
        found = re.search(r"ready at (\w+://[\d.:]+)", self.said)
        assert found, self.log[-4000:]
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=120, trust_env=False, verify=False)
        return self

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.partition("//")[2].split(":")
        return host, int(port)

    def complete(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "m", "prompt": "hi", **fields})

    def chat(self, *messages: Any, **fields: Any) -> httpx.Response:
        said = list(messages) or [{"role": "user", "content": "hi"}]
        return self.client.post("/v1/chat/completions", json={"model": "m", "messages": said, **fields})

    def metric(self, name: str) -> float:
        lines = [line for line in self.client.get("/metrics").text.splitlines() if line.startswith(name)]
        found = [line for line in lines if line[len(name)] in "{ ,}"]
        assert found, f"{name} is not in /metrics"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def eventually(self, true: Callable[[], bool]) -> None:
        assert soon(true, 60)

    def control(self) -> None:
        """Alive, and a plain completion says what it always says."""
        assert self.client.get("/health").status_code == 200, self.log[-4000:]
        answer = self.complete(max_tokens=100)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == REPLY

    @contextmanager
    def stream(self, **fields: Any) -> Iterator[Iterator[str]]:
        """The lines of a stream that goes on, of which the first is there."""
        body = {"model": "m", "prompt": "hi", "max_tokens": 200, "ignore_eos": True, "stream": True, **fields}
        with self.client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            yield lines

    def family(self) -> list[int]:
        """The processes of vLLM: all of one group, which its first process leads."""
        own = self.process.pid
        (leader,) = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                found += [int(folder.name)] if fields[2] == leader and fields[0] != "Z" else []
        return found

    def named(self, name: str) -> int:
        return next(pid for pid in self.family() if name in Path(f"/proc/{pid}/comm").read_text())

    def end(self, limit_s: float = 120.0) -> int:
        status: int = self.process.wait(limit_s)
        return status

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.communicate()


def quiet(folder: Path) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def gone(pids: list[int]) -> bool:
    return soon(lambda: not any(map(alive, pids)), 60)
