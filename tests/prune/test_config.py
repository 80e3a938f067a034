"""Which configs make no sense, what the manifest says, and how progress reads."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import twofour
from twofour.prune import progress
from twofour.prune.config import PruneConfig
from twofour.prune.errors import InputError, TextError
from twofour.prune.format.head import Head
from twofour.prune.format.schemes import Scheme
from twofour.prune.label.manifest import PrunedLinear, Result, Text, file_digests, manifest
from twofour.prune.machine import provenance
from twofour.prune.progress import Step
from twofour.prune.recovery.training import Outcome, Recovery

BAD: dict[str, Any] = {
    "preset": "fastest",
    "method": "obs",
    "format": "zip",
    "values": "int4",
    "lm_head": "int4",
    "dtype": "int8",
    "samples": 0,
    "length": 1,
    "seed": -1,
    "damping": 0.0,
    "block_columns": 6,
    "calibration": "",
    "memory_limit_bytes": 0,
    "budget": -0.4,
    "max_kl": 0.0,
    "budget_for": "decode",
    "card": "H100",
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_makes_no_sense_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is {BAD[name]!r}; give "):
        PruneConfig(**{name: BAD[name]})


@pytest.mark.parametrize("damping", [float("nan"), float("inf"), -1.0])
def test_damping_is_a_positive_number(damping: float) -> None:
    with pytest.raises(InputError, match="damping"):
        PruneConfig(damping=damping)


def test_a_preset_names_its_solver_and_a_method_trains_nothing() -> None:
    fast, balanced, best = (PruneConfig(preset=preset).stages for preset in ("fast", "balanced", "best"))
    assert (fast.solver, balanced.solver, best.solver) == ("sparsegpt", "refine", "refine")
    assert (fast.trains, balanced.trains, best.trains) == (False, True, True)
    assert fast.model_passes < balanced.model_passes < best.model_passes
    assert (PruneConfig().chosen, PruneConfig().stages) == ("balanced", balanced)
    wanda = PruneConfig(method="wanda")
    assert (wanda.chosen, wanda.stages.solver, wanda.stages.trains) == (None, "wanda", False)


def test_a_preset_and_a_method_exclude_each_other() -> None:
    with pytest.raises(InputError, match="preset fast and method wanda exclude each other"):
        PruneConfig(preset="fast", method="wanda")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"budget": 0.4, "max_kl": 0.1}, "budget and max_kl exclude each other"),
        ({"frontier": (0.4, 0.4)}, "budgets, each once"),
        ({"budget": 0.4, "card": "H100"}, "card is 'H100'; give a budget for decode or prefill"),
        ({"budget": 0.4, "keep_dense": ("*",)}, "either that or a budget"),
        ({"budget": 0.4, "method": "magnitude"}, "one that calibrates"),
    ],
)
def test_budgets_that_make_no_sense(asked: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        PruneConfig(**asked)


def test_a_choice_draws_samples_to_judge_on() -> None:
    plain, chosen = PruneConfig(), PruneConfig(budget=0.4)
    assert (plain.judged_samples, plain.drawn.text_samples) == (0, 128)
    assert (chosen.judged_samples, chosen.drawn.text_samples, chosen.text_samples) == (12, 140, 128)
    assert PruneConfig(budget=0.4, samples=8, length=4096).judged_samples == 1


def test_training_needs_text_to_validate_on() -> None:
    with pytest.raises(InputError, match="samples is 1; give at least 2: one to train on"):
        PruneConfig(preset="best", samples=1)
    assert PruneConfig(preset="fast", samples=1).text_samples == 1


def test_a_preset_knows_how_much_text_it_wants() -> None:
    fast, best = PruneConfig(preset="fast"), PruneConfig(preset="best")
    assert best.text_samples > fast.text_samples == PruneConfig(method="refine").text_samples
    asked = PruneConfig(preset="best", samples=10, length=7, calibration=("self", "chat", "a.txt"))
    assert asked.text_tokens == 70 and asked.shares == {"self": 4, "chat": 3, "a.txt": 3}


def test_kept_weights_are_trained_as_a_whole_or_by_blocks() -> None:
    for preset in ("balanced", "best"):
        whole, blocks = (PruneConfig(preset=preset, train=train).stages for train in ("model", "blocks"))
        assert PruneConfig(preset=preset).stages == whole
        assert whole.model_passes > 0 == blocks.model_passes
        assert blocks.block_passes == whole.block_passes + whole.model_passes > whole.block_passes > 0
        assert (blocks.solver, blocks.samples) == (whole.solver, whole.samples)
    assert PruneConfig(preset="fast", train="blocks").stages == PruneConfig(preset="fast").stages


def label(config: PruneConfig) -> dict[str, Any]:
    linears = {"a.q": PrunedLinear((8, 4), 0.25, 96)}
    return manifest(
        "org/model", {}, config, Text(), Result(linears, {"lm_head": "why"}, "bfloat16", "float32"), 2, 90.0
    )


def test_the_manifest_says_what_was_done() -> None:
    document = label(PruneConfig(samples=3, length=32, seed=7, revision="abc", damping=0.02))
    assert document["base_model"] == "org/model@abc"
    sources = [{"source": "self", "samples": 3}]
    calibration = {"sources": sources, "samples": 3, "length": 32, "tokens": 96, "seed": 7}
    assert document["calibration"] == calibration
    assert document["values"] == {"dtype": "bfloat16"}
    assert document["solver"] == {"damping": 0.02, "block_columns": 128}
    assert document["linears"] == {"a.q": {"shape": (8, 4), "loss": 0.25, "tokens": 96}}
    assert document["dense"] == {"lm_head": "why"} and document["fallbacks"] == []
    assert document["minutes"] == 1.5 and document["peak_memory_bytes"] > 10 << 20
    assert document["versions"]["twofour"]
    assert (document["preset"], document["method"], document["recovery"]) == ("balanced", "refine", None)


def test_schemes_and_their_shares_are_on_the_label() -> None:
    schemes: dict[str, Scheme] = {"a.q": "2:4", "a.o": "dense-int8", "b.q": "2:4"}
    shapes = dict.fromkeys(schemes, (8, 64))
    result = Result({}, {}, "float16", "float32", schemes=schemes, shapes=shapes)
    document = manifest("m", {}, PruneConfig(), Text(), result, 2, 9.0)
    assert (document["schemes"], document["format_version"]) == (schemes, 3)
    assert document["shares"] == {
        "2:4": {"linears": 2, "weights": 1024, "bytes": 1152},
        "dense-int8": {"linears": 1, "weights": 512, "bytes": 544},
    }


def test_recovery_is_on_the_label() -> None:
    linears = {"a.q": PrunedLinear((8, 4), 0.25, 96)}
    config, recovery = PruneConfig(preset="best"), Recovery([], Outcome(1.0, 0.5, 4))
    result = Result(linears, {}, "bfloat16", "float32", recovery, ["by blocks"])
    document = manifest("m", {}, config, Text(), result, 2, 9.0)
    assert document["fallbacks"] == ["by blocks"]
    assert document["preset"] == "best" and document["recovery"] == recovery.as_dict()
    assert document["loss_kind"].endswith(", before recovery")


def test_int8_values_are_on_the_label() -> None:
    assert label(PruneConfig(values="int8"))["values"] == {"dtype": "int8", "scale_columns": 0}


def test_int8_values_have_no_dense_form() -> None:
    with pytest.raises(InputError, match=r"^values is 'int8'; give model with the format dense, .*convert --to dense"):
        PruneConfig(values="int8", format="dense")


def test_a_head_in_int8_is_on_the_label_and_has_no_dense_form() -> None:
    assert (label(PruneConfig())["lm_head"], label(PruneConfig())["format_version"]) == (None, 1)
    head = Head("lm_head", "model.embed_tokens.weight", (320, 72))
    result = Result({"a.q": PrunedLinear((8, 4), 0.25, 96)}, {}, "bfloat16", "float32", head=head)
    document = manifest("m", {}, PruneConfig(lm_head="int8"), Text(), result, 2, 9.0)
    assert document["lm_head"] == {"dtype": "int8", "scale_columns": 64, "shape": [320, 72], "tied": True}
    assert document["format_version"] == 2
    with pytest.raises(InputError, match=r"^lm_head is 'int8'; give model with the format dense, .*convert --to dense"):
        PruneConfig(lm_head="int8", format="dense")


def test_every_source_is_on_the_label_and_no_path_of_this_machine() -> None:
    notes = "/home/someone/notes.txt"
    local = (notes, f"self:{notes}", "hub:/home/someone/texts:test", "hub:./texts")
    config = PruneConfig(calibration=("self", *local, "hub:owner/name:train:body"), samples=20)
    names = ["self", "notes.txt", "self:notes.txt", "texts:test", "texts", "hub:owner/name:train:body"]
    found = label(config)["calibration"]["sources"]
    assert found == [{"source": name, "samples": 5 if name == "self" else 3} for name in names]


def test_files_that_are_calibrated_on_have_their_digests_on_the_label(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"abc")
    config = PruneConfig(calibration=("self", str(file), f"self:{file}", "hub:owner/name"), samples=4)
    text = Text(file_digests(config), "<bos>")
    document = manifest("m", {}, config, text, Result({}, {}, "bfloat16", "float32"), 2, 9.0)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert document["calibration"]["sources"] == [
        {"source": "self", "samples": 1},
        {"source": "notes.txt", "samples": 1, "sha256": sha256, "begins_with": "<bos>"},
        {"source": "self:notes.txt", "samples": 1, "sha256": sha256},
        {"source": "hub:owner/name", "samples": 1, "begins_with": "<bos>"},
    ]
    assert file_digests(PruneConfig(method="magnitude", calibration="gone.txt")) == {}
    with pytest.raises(TextError, match=r"gone\.txt cannot be read"):
        file_digests(PruneConfig(calibration="gone.txt"))


def test_the_gpu_has_its_name_on_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fast {device}")
    assert label(PruneConfig(device="cuda:1"))["machine"]["gpu"] == "Fast cuda:1"
    assert "gpu" not in label(PruneConfig())["machine"]


@pytest.mark.parametrize("calibration", [(), ("self", ""), ("self", "chat", "self")])
def test_sources_that_make_no_sense(calibration: tuple[str, ...]) -> None:
    with pytest.raises(
        InputError, match=r"^calibration is .*; give self, chat, a text file, self:FILE or hub:OWNER/NAME, each on"
    ):
        PruneConfig(calibration=calibration)


def test_every_source_has_a_sample() -> None:
    with pytest.raises(InputError, match=r"^samples is 2; give at least 3: one of each source"):
        PruneConfig(calibration=("self", "chat", "a.txt"), samples=2)


def test_magnitude_claims_no_calibration() -> None:
    document = label(PruneConfig(method="magnitude"))
    assert document["calibration"] is None and document["solver"] == {}


def test_the_time_left_goes_on_as_before() -> None:
    assert Step("s", 3, 12, 6.0).left_s == 18.0
    assert Step("s", 0, 12, 6.0).left_s is None
    assert Step("s", 28, 30, 60.0, before=27).left_s == 120.0  # of a run that was cut off
    assert progress.line(Step("pruning", 3, 12, 6.0, "loss 0.1")) == "pruning 3/12 after 6 s, 18 s left: loss 0.1"
    assert progress.line(Step("pruning", 12, 12, 6.0)) == "pruning 12/12 after 6 s"


def test_off_a_terminal_there_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    show = progress.to_stderr()
    for stage in ("one", "two"):
        for done in range(1, 9):
            show(Step(stage, done, 8, 2.0 * done))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(",")[0] for line in captured.err.splitlines()] == [
        "one 3/8 after 6 s",
        "one 6/8 after 12 s",
        "one 8/8 after 16 s",
        "two 3/8 after 6 s",
        "two 6/8 after 12 s",
        "two 8/8 after 16 s",
    ]


def test_on_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    show = progress.to_stderr()
    for stage in ("one", "two"):
        for done in (1, 2):
            show(Step(stage, done, 2, 1.0 * done, "loss 0.1"))
    captured = capsys.readouterr()
    assert captured.out == "" and "2/2" in captured.err and "two: 100%" in captured.err


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(provenance, "version", lambda name: asked.append(name) or "1")
    assert provenance.versions()["twofour"] == twofour.__version__
    assert "torch" in asked and "twofour" not in asked
