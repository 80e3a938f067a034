"""The estimate against sums by hand, against published measurements, and against what 2:4 can be at most."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from twofour.bench.capacity import consistent, profile, roofline
from twofour.bench.capacity.plan import plan
from twofour.bench.capacity.roofline import Sizes, estimate, estimates, sizes
from twofour.bench.capacity.table import table
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.cli import main
from twofour.prune.errors import InputError, ModelError
from twofour.prune.format.schemes import Scheme
from twofour.prune.policy.cards import CARDS, known

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
LINEAR = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96)
PROMISE = "ttft_p95=500ms,itl_p95=50ms"


def folder(path: Path, **other: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | other))
    return path


def llama(hidden: int, intermediate: int, layers: int, kv: int, vocab: int) -> Sizes:
    """kv: numbers of the keys of a token in a layer."""
    shapes = [(hidden, hidden)] * 2 + [(kv, hidden)] * 2 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    return Sizes(
        "m", shapes * layers, vocab * hidden, 0, vocab * hidden, 2 * kv * layers, layers, hidden * layers, 4096
    )


SMALL, LARGE = llama(4096, 11008, 32, 4096, 32000), llama(8192, 28672, 80, 1024, 32000)


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_config(tmp_path: Path, tied: bool) -> None:
    found = sizes(folder(tmp_path / "m", tie_word_embeddings=tied))
    assert (found.name, found.linear, found.head) == ("m", LINEAR, 6400)
    assert (found.others, found.embedding) == (5 * 64, 0 if tied else 6400)
    assert (found.cached, found.attended, found.layers, found.context) == (2 * 2 * 2 * 16, 2 * 64, 2, 512)


def test_terms_by_hand(tmp_path: Path) -> None:
    dense, sparse, int8 = estimates(folder(tmp_path / "m"), ["H100"], ["dense", "2:4", "int8"])
    assert [each.name for each in (dense, sparse, int8)] == ["H100-dense", "H100-2:4", "H100-dense-int8"]
    rest = 2 * (6400 + 5 * 64)
    assert [each.weight_bytes for each in (dense, sparse)] == [2 * LINEAR + rest, 1.125 * LINEAR + rest]
    steps, read_s, compute_s = dense.replica.steps, 1 / (0.73 * 3350e9), 1 / (0.5 * 989e12)
    assert steps.fixed_s == pytest.approx((2 * LINEAR + rest) * read_s + 2 * 20e-6)
    assert steps.prefill_s == pytest.approx(2 * LINEAR * compute_s)
    assert steps.decode_s == pytest.approx(2 * (LINEAR + 6400) * compute_s)
    assert steps.kv_s == pytest.approx(2 * 128 * read_s)
    assert steps.pair_s == pytest.approx(4 * 128 / (0.4 * 989e12))
    assert sparse.replica.steps.prefill_s == pytest.approx(0.6 * steps.prefill_s)
    assert int8.replica.steps.prefill_s == steps.prefill_s and int8.replica.steps.fixed_s < steps.fixed_s


def test_the_cache_is_what_the_weights_leave() -> None:
    limits = estimate(SMALL, "A100", known("A100"), "dense").replica.limits
    weights = 2 * (SMALL.linear + 2 * 32000 * 4096)
    room = 0.9 * 80 * 2**30 - 2 * 2**30 - weights
    assert limits.kv_blocks * limits.block_size == pytest.approx(room / (2 * 2 * 4096 * 32), abs=16)
    assert limits.context_length == 4096


@pytest.mark.parametrize(
    ("model", "arm", "per_s", "within"),
    [(SMALL, "dense", 104.9, 0.05), (SMALL, "dense-int8", 155.58, 0.25), (LARGE, "dense-int8", 19.13, 0.15)],
)
def test_published_measurements(model: Sizes, arm: Scheme, per_s: float, within: float) -> None:
    """gpt-fast's README: Llama 2 of 7B and 70B on an A100, one sequence, short."""
    steps = estimate(model, "A100", known("A100"), arm).replica.steps
    assert 1 / steps.seconds(0, 1, 200, 0) == pytest.approx(per_s, rel=within)
    assert within < roofline.ERROR - 1


@pytest.mark.parametrize("gpu", CARDS)
@pytest.mark.parametrize(("dense", "sparse"), [("dense", "2:4"), ("dense-int8", "2:4-int8")])
def test_dense_and_sparse_can_both_be_right(gpu: str, dense: Scheme, sparse: Scheme) -> None:
    both = [estimate(SMALL, gpu, known(gpu), arm) for arm in (dense, sparse)]
    assert consistent.errors(*both) == []
    slow, fast = (each.replica.steps for each in both)
    assert fast.fixed_s < slow.fixed_s and fast.prefill_s < slow.prefill_s
    assert (fast.decode_s, fast.kv_s, fast.pair_s) == (slow.decode_s, slow.kv_s, slow.pair_s)


def test_draws_are_off_either_way_and_no_more() -> None:
    found = estimate(SMALL, "L40S", known("L40S"), "dense")
    for term in ("fixed_s", "prefill_s", "decode_s", "kv_s", "pair_s"):
        ratios = [getattr(each, term) / getattr(found.replica.steps, term) for each in found.draws]
        assert 1 / roofline.ERROR <= min(ratios) < 0.75 and 1.35 < max(ratios) <= roofline.ERROR


def test_an_estimate_is_read_as_it_was_written() -> None:
    found = estimate(SMALL, "H200", known("H200"), "2:4")
    said = json.loads(json.dumps(profile.document(found, {})))
    assert profile.of_document(said, "it").source == "estimate"


def test_the_first_line_of_an_answer_says_that_it_is_an_estimate() -> None:
    options = [estimate(SMALL, "H100", known("H100"), arm) for arm in get_args(Scheme)[:1]]
    lines = table(plan(options, Traffic(None, rate=Rate(2.0)), PROMISE)).splitlines()
    assert lines[0].startswith("estimate, not measured: H100-")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--gpu H100", "give both --model and --gpu"),
        ("--model MODEL", "give both --model and --gpu"),
        ("--model MODEL --gpu H1000", "no card is named 'H1000'"),
        ("--model MODEL --gpu H100 --arm 2:5", "no arm is named '2:5'"),
        ("--model MODEL/missing --gpu H100", "missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = flags.replace("MODEL", str(folder(tmp_path / "m"))).split()
    assert main(["plan", "--rate", "1", "--slo", PROMISE, *words]) == 1
    assert said in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"as dense has 128.5 GiB of weights, and a H100 has 80 GiB"):
        estimate(LARGE, "H100", known("H100"), "dense")
    assert estimate(LARGE, "H100", known("H100"), "2:4-int8").replica.limits.kv_blocks > 0


def test_experts_are_refused(tmp_path: Path) -> None:
    experts = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 2}
    with pytest.raises(ModelError, match="run bench profile"):
        sizes(folder(tmp_path / "m", **experts))
    with pytest.raises(ModelError, match="describes no model"):
        sizes(folder(tmp_path / "n", model_type="no such"))
