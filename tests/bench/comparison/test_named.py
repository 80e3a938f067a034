"""Arms by name: how they are given, and what is refused."""

import json
from pathlib import Path

import pytest

from twofour.bench.comparison import named, quality
from twofour.bench.comparison.named import NamedArm, known_qualities, measured_qualities, read_named, require_one_text
from twofour.bench.comparison.quality import Quality
from twofour.prune.errors import InputError

LOST = Quality(17.2, 24.9, 0.41, 0.7, 8176, "wiki.txt", "a file")


CONFIGS = {
    "dense": None,
    "2of4": {"schemes": {"2:4-int8": ["a.1.q"]}, "ignore": ["lm_head", "model.layers.1.mlp.gate"]},
    "mixed": {"schemes": {"dense-int8": ["model.layers.1.mlp.up_proj"]}, "ignore": ["lm_head"]},
    "kept": {"ignore": ["lm_head", "model.layers.1.mlp.gate_proj"]},
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Folders that are told apart by their files alone."""
    for name, config in CONFIGS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ("model.safetensors" if config is None else "model.twofour.safetensors")).touch()
        (tmp_path / name / "config.json").write_text(json.dumps({"quantization_config": config}))
    return tmp_path


def test_arms_have_names_kinds_and_flags(models: Path) -> None:
    given = [str(models / "dense"), f"int8={models}/dense", f"2:4={models}/2of4", f"mix={models}/mixed"]
    dense, int8, sparse, mixed = read_named(given, ["int8=--dense-values int8 --kv-blocks 9", "mix=--lm-head int8"])
    assert (dense.name, dense.kind, dense.flags, dense.rounding) == ("dense", "dense", (), [])
    assert int8.flags == ("--dense-values", "int8", "--kv-blocks", "9") and int8.model == f"{models}/dense"
    assert int8.rounding == ["--dense-values", "int8"] and mixed.rounding == ["--lm-head", "int8"]
    assert [arm.kind for arm in (int8, sparse, mixed)] == ["dense", "sparse", "mixture"]
    assert named.kind_of(f"{models}/kept") == "mixture"


def test_a_folder_gives_its_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models / "2of4")
    assert [(arm.name, arm.kind) for arm in read_named([".", "../dense/"])] == [("2of4", "sparse"), ("dense", "dense")]


def test_what_runs_already_is_an_arm_of_which_nobody_knows_what_it_is(models: Path) -> None:
    given = ["a=http://127.0.0.1:1", "http://127.0.0.1:2/?a=b", str(models / "dense")]
    assert [(arm.name, arm.kind, arm.runs) for arm in read_named(given)] == [
        ("a", "running", True),
        ("127.0.0.1:2", "running", True),
        ("dense", "dense", False),
    ]
    assert measured_qualities(read_named(given), {}, None) == {}  # it cannot be asked of an address


def test_what_is_no_arm_is_refused(models: Path) -> None:
    dense = str(models / "dense")
    for given, flags, said in (
        ([dense, dense], [], "the name dense is given twice"),
        (["a=http://127.0.0.1:1", dense], ["a=--lm-head int8"], "a runs already and cannot be given --arm-flags"),
        ([f"a={models}/none", dense], [], "none is not a folder"),
        ([dense], ["other=--lm-head int8"], "names no arm; give NAME=... with one of dense"),
    ):
        with pytest.raises(InputError, match=said):
            read_named(given, flags)
    with pytest.raises(InputError, match="a has --arm-flags that serve does not know"):
        _ = NamedArm("a", "m", flags=("--lm-head", "int3")).rounding


def test_losses_are_read_or_measured_against_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = tmp_path / "eval.json", []
    figures = {"baseline_perplexity": 10.0, "perplexity": 12.5, "kl_nats": 0.25, "agreement": 0.8}
    file.write_text(json.dumps(figures | {"predictions": 99, "text": "a text"}))
    arms = [NamedArm("dense", "d"), NamedArm("a", "m"), NamedArm("b", "n", flags=("--dense-values", "int8", "-x"))]
    known = known_qualities([f"a={file}"], arms)
    assert known["a"].kl == 0.25
    with pytest.raises(InputError, match="dense is what the others are compared with"):
        known_qualities([f"dense={file}"], arms)

    def of_models(*given: object) -> Quality:
        asked.append(given)
        return LOST

    monkeypatch.setattr(quality, "of_models", of_models)
    found = measured_qualities(arms, known, Path("text"))
    assert asked == [("d", "n", Path("text"), ["--dense-values", "int8"])]
    assert found == {"a": known["a"], "b": LOST}
    rounded = [NamedArm("dense", "d", flags=("--lm-head", "int8")), *arms[1:]]
    with pytest.raises(InputError, match="dense is rounded at load"):
        measured_qualities(rounded, known, None)
    assert measured_qualities(rounded, {"a": LOST, "b": LOST}, None) == {"a": LOST, "b": LOST}
    with pytest.raises(InputError, match=r"a on 99 of a text, b on 8176 of wiki\.txt"):
        require_one_text(found)


@pytest.mark.parametrize(("given", "said"), [("a=b", True), ("a", False), ("=b", False), ("./a=b", False)])
def test_a_name_is_no_path(given: str, said: bool) -> None:
    assert named.is_named(given) == said
