"""Fault 25: a machine that has too little memory, as a control group of the test. The number is that of the table.

What is admitted is computed within the limit; where the kernel kills the engine all the same, clients are told so and
the next engine serves. A server that is killed itself is its supervisor's: tests/deploy.
"""

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from memory_group import MemoryGroup, memory_group
from transformers import LlamaConfig, LlamaForCausalLM

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
MIB = 1 << 20
# A token a letter; no two begin alike, so that none shares another's cache. All together they take 300 MB of it.
PROMPTS = [f"{number} " + "a long story " * 120 for number in range(24)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/sys/fs/cgroup").is_dir(), reason="control groups are of Linux"),
]


@pytest.fixture(scope="module")
def wide(roomy_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which each token takes 8 KiB of the cache."""
    folder = Path(shutil.copytree(roomy_model_folder, tmp_path_factory.mktemp("models") / "wide"))
    config = LlamaConfig.from_pretrained(folder, head_dim=64, num_key_value_heads=4, num_hidden_layers=4)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[MemoryGroup]:
    with memory_group("faults") as made:
        yield made


def crowd(server: Server) -> list[Any]:
    """The answers to all prompts at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: server.complete(prompt=prompt, max_tokens=20, ignore_eos=True), PROMPTS))


def cache_tokens(server: Server) -> int:
    labels = re.search(r"^vllm:cache_config_info\{(.*)\}", server.get("/metrics").text, re.MULTILINE)[1]
    known = dict(re.findall(r'(\w+)="(.*?)"', labels))
    return int(known["block_size"]) * int(known["num_gpu_blocks"])


def test_fault_25_long_prompts_in_little_memory(start: Any, wide: Path, group: MemoryGroup) -> None:
    """The cache is a share of the limit, not of the machine: what it cannot hold waits, and nobody is killed."""
    limit = 1024 * MIB
    group.limit(limit)
    server = start("--max-num-seqs", "64", model=wide, preexec_fn=group.enter)
    pid = server.engine_pid()
    assert cache_tokens(server) * 8192 <= limit / 8 and cache_tokens(server) < sum(map(len, PROMPTS))
    answers = crowd(server)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all(answer.status_code == 200 or answer.headers["retry-after"] for answer in answers)
    assert sum(answer.status_code == 200 for answer in answers) >= 8
    assert (group.kills, server.engine_pid()) == (0, pid) and group.used < limit
    server.whole()
    server.signal(signal.SIGTERM)
    assert server.end() == 0


def test_fault_25_the_kernel_kills_the_engine(
    start: Any, wide: Path, group: MemoryGroup, eventually: Eventually
) -> None:
    """The limit is lowered after the cache was sized: a cache that fills is one that the kernel does not allow."""
    server = start("--max-num-seqs", "64", engine={"kv_tokens": 40_000}, model=wide, preexec_fn=group.enter)
    pid = server.engine_pid()
    # A model of any size makes the engine the largest process; a toy does not.
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    group.limit(group.used + 24 * MIB)
    statuses = {answer.status_code for answer in crowd(server)}
    assert group.kills >= 1 and 503 in statuses and statuses <= {200, 503}
    group.limit(8192 * MIB)
    eventually(lambda: server.ready() and server.engine_pid() != pid, 60)
    assert server.metric("twofour:engine_restarts_total") >= 1
    server.whole()
    server.signal(signal.SIGTERM)
    assert server.end() == 0
