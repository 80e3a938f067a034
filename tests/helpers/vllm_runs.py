"""vLLM in child processes, for tests: what a model answers there, greedily."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHILD = Path(__file__).parent / "vllm_child.py"
PROMPTS = [[5, 17, 99, 120, 33], [200, 64, 65, 66], [7] * 12, [31, 250, 41, 180, 9, 77, 12]]
TOKENS = 32
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TWOFOUR_CACHE": "/dev/null/twofour",  # kernels are the built-in ones, not the winners of a race
}


class Vllm:
    """One child process; every question loads a model anew."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, model: Path, **asked: Any) -> dict[str, Any]:
        """options: of LLM. Returns tokens, or the error."""
        asked = {"model": str(model), "prompts": PROMPTS, "tokens": TOKENS, "options": {}, **asked}
        assert self._process.stdin and self._process.stdout
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def tokens(self, model: Path, dtype: str = "float32", **asked: Any) -> list[list[int]]:
        """What it answers to the prompts; there must be no error."""
        options = {"dtype": dtype, **asked.pop("options", {})}
        answer = self.ask(model, options=options, **asked)
        assert "error" not in answer, answer
        tokens: list[list[int]] = answer["tokens"]
        return tokens


@contextmanager
def started(**environment: str) -> Iterator[Vllm]:
    """A child, its engine within it unless the environment says otherwise."""
    with tempfile.TemporaryDirectory() as cache:
        inside = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", cache)}
        process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            env={**os.environ, **ENVIRONMENT, **inside, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Vllm(process)
        finally:
            assert process.stdin
            process.stdin.close()
            assert process.stdout
            process.stdout.close()
            process.wait(timeout=60)
