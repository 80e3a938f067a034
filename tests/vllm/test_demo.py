"""The real model, pruned and packed, gives in vLLM what it gives dense with zeros, and what transformers gives."""

from pathlib import Path

import pytest
from vllm_models import greedy
from vllm_runs import TOKENS, Vllm

from twofour.prune import PruneConfig, prune
from twofour.prune.label.convert import convert

DENSE = Path(__file__).parents[2] / ".demo" / "SmolLM2-135M-Instruct"
PROMPTS = [[504, 3575, 282, 4649, 314], [1604, 803, 24, 81, 28, 330, 2445], [6403, 2002, 253, 655], [34, 1232, 216, 34]]


@pytest.mark.demo
@pytest.mark.skipif(not DENSE.exists(), reason="`make demo` takes the demo model out of its package")
def test_the_demo_model(vllm: Vllm, tmp_path: Path) -> None:
    packed_folder, dense = tmp_path / "packed", tmp_path / "dense"
    prune(DENSE, packed_folder, PruneConfig(method="magnitude"))
    convert(packed_folder, dense, "dense")
    packed = vllm.tokens(packed_folder, prompts=PROMPTS)
    assert packed == vllm.tokens(dense, prompts=PROMPTS)
    assert packed == greedy(dense, PROMPTS, TOKENS)
