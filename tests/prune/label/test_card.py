"""The card says what the manifest says, in front matter that the hub reads, and what it does not know it says too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from twofour.prune import PruneConfig, check, prune
from twofour.prune.errors import CheckpointError, InputError
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json
from twofour.prune.label.card import card, likeness
from twofour.prune.label.convert import convert
from twofour.prune.label.publish import add_quality
from twofour.prune.label.report import page

FIGURES = {
    "window_tokens": 512,
    "windows": 16,
    "perplexity": 30.0,
    "perplexity_error": 1.25,
    "baseline_perplexity": 20.0,
    "kl_nats": 0.25,
    "kl_error": 0.0125,
    "agreement": 0.625,
    "sampled": True,
    "against_perplexity": 60.0,
    "gap_closed": 0.75,
    "nll_gap_closed": 0.63,
}


@pytest.fixture(scope="module")
def pruned(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card") / "tiny-2of4"
    prune(tiny_model_folder, out, PruneConfig(method="wanda", samples=4, length=32))
    return out


@pytest.fixture
def manifest(pruned: Path) -> dict[str, Any]:
    return read_json(pruned / MANIFEST)


def test_a_run_leaves_a_card(pruned: Path, manifest: dict[str, Any]) -> None:
    text = (pruned / "README.md").read_text()
    assert text == card(manifest, "tiny-2of4", "packed")
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "twofour" and data["pipeline_tag"] == "text-generation" and "2of4" in data["tags"]
    assert "license" not in data and "names no licence" in text and "base_model" not in data
    assert "tiny with 14 linears pruned" in text and str(pruned.parent) not in text
    assert "| method | wanda |" in text and "4 x 32 tokens; seed 0" in text
    assert "`lm_head`: outside the decoder blocks" in text and "Fallbacks from what was asked: none." in text
    assert "twofour eval tiny-2of4 --baseline DENSE --label" in text


def test_what_windows_begin_with_is_named(manifest: dict[str, Any]) -> None:
    known = {"a.txt": {"sampled": False, "begins_with": "<bos>"}, "b.txt": {"sampled": False, "begins_with": None}}
    rows = card(manifest | {"quality": {text: FIGURES | about for text, about in known.items()}}, "x", "packed")
    assert "| a.txt (16 x 512 tokens, each after BOS) |" in rows and "| b.txt (16 x 512 tokens) |" in rows


def test_what_a_figure_depends_on_is_named(manifest: dict[str, Any]) -> None:
    int8 = {"dtype": "int8", "scale_columns": 0}
    source = {"source": "notes.txt", "samples": 4, "sha256": "ba7816bf8f01cfea"}
    manifest |= {
        "origin": manifest["origin"] | {"commit": "0123abcd"},
        "machine": manifest["machine"] | {"device": "cuda", "gpu": "NVIDIA H100"},
        "calibration": manifest["calibration"] | {"sources": [source]},
        "values": {"dtype": "bfloat16", "rounded_once_to": int8},
    }
    text = card(manifest, "m", "packed")
    assert "| commit of the base model | 0123abcd |" in text and "on cuda (NVIDIA H100)" in text
    assert "| calibration | notes.txt (SHA-256 ba7816bf8f01...), 4 x 32 tokens" in text
    assert "| kept weights | bfloat16, read back from int8, to which they were rounded |" in text
    assert "NVIDIA H100" in page(manifest, "m")


def test_text_that_goes_on_from_a_file_is_named_with_it(manifest: dict[str, Any]) -> None:
    source = {"source": "self:notes.txt", "samples": 4, "sha256": "ba7816bf8f01cfea", "written_by": "transformers"}
    text = card(manifest | {"calibration": manifest["calibration"] | {"sources": [source]}}, "m", "packed")
    begun = "text that the dense model wrote, begun with pieces of notes.txt"
    assert f"| calibration | {begun} (transformers; SHA-256 ba7816bf8f01...), 4 x 32 tokens" in text


def test_a_head_in_int8_is_named_and_its_loss_alone(manifest: dict[str, Any]) -> None:
    manifest |= {"lm_head": {"dtype": "int8", "scale_columns": 64, "shape": [49152, 576], "tied": True}}
    manifest |= {"recovery": {"blocks": [], "model": {"before": 0.5, "after": 0.25, "passes": 1}}}
    measured = {"a.txt": {"head_kl_nats": 0.0025, "head_kl_error": 0.0001}, "b.txt": {"head_kl_nats": None}}
    manifest |= {"quality": {name: FIGURES | {"sampled": False} | figures for name, figures in measured.items()}}
    text = card(manifest, "m", "packed")
    kind = "int8 with a scale for each 64 columns"
    beside = "stored beside the embeddings that the base model ties it to: 30.1 MB more on disk"
    assert f"| lm_head | {kind}, {beside} |" in text
    assert "0.500 -> 0.250 nats on held-out text, passes: 1, before lm_head was rounded" in text
    assert "by itself, all else the same, that is KL 0.0025 ± 0.0001 (a.txt) from lm_head as it was." in text
    shown = page(manifest, "m")
    assert "that is KL 0.0025 ± 0.0001 (a.txt)" in shown and "; all before lm_head was rounded" in shown
    manifest["lm_head"]["tied"] = False
    assert f"| lm_head | {kind} |" in card(manifest, "m", "packed")
    manifest["lm_head"] = {"dtype": "bfloat16", "rounded_once_to": {"dtype": "int8", "scale_columns": 64}}
    assert "| lm_head | bfloat16, read back from int8, to which it was rounded |" in card(manifest, "m", "dense")


def test_a_label_that_is_none_is_refused(pruned: Path, tmp_path: Path) -> None:
    """Its digests fit, what the card is made of does not."""
    shutil.copytree(pruned, tmp_path / "copy")
    for change in ({"linears": 5}, {"machine": None}, {"origin": ["x"]}, {"minutes": "long"}):
        manifest = read_json(pruned / MANIFEST) | change
        (tmp_path / "copy" / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=r"twofour\.json"):
            convert(tmp_path / "copy", tmp_path / "out", "packed")
        assert not (tmp_path / "out").exists()


def test_the_largest_loss_of_a_kind_is_named(manifest: dict[str, Any]) -> None:
    manifest["linears"] = {
        "layers.0.q_proj": {"loss": 0.125},
        "layers.1.q_proj": {"loss": 0.375},
        "layers.1.o_proj": {"loss": 0.5},
    }
    text = card(manifest, "m", "packed")
    assert "| q_proj | 2 | 0.2500 | 0.3750 at layers.1.q_proj |" in text
    assert "| o_proj | 1 | 0.5000 | 0.5000 at layers.1.o_proj |" in text


def test_the_licence_is_carried_over(manifest: dict[str, Any]) -> None:
    licence = {"license": "other", "license_name": "x", "license_link": "LICENSE"}
    stated = {
        "licence": licence,
        "licence_from": "LICENSE",
        "licence_files": ["LICENSE", "NOTICE"],
        "base_model": "a/b",
    }
    text = card({**manifest, "origin": {"name": "b", **stated}}, "m", "dense")
    data = ModelCard(text).data.to_dict()
    assert {key: data[key] for key in licence} == licence and data["base_model"] == "a/b"
    assert data["library_name"] == "transformers" and "Copied along: LICENSE, NOTICE." in text


def test_figures_go_on_the_label_and_replace_older_ones(pruned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    convert(pruned, folder, "dense")
    before = json.loads((folder / "twofour.json").read_text())
    for perplexity in (40.0, 30.0):
        add_quality(folder, "16 windows", FIGURES | {"perplexity": perplexity})
    unknown = dict.fromkeys(("gap_closed", "nll_gap_closed", "perplexity_error", "kl_error"))
    side = {"model": 0.25, "model_error": 0.0312, "baseline": 0.5, "baseline_error": None}
    add_quality(folder, "wiki", FIGURES | unknown | {"sampled": False}, {"colours": {"acc": side}})
    after = json.loads((folder / "twofour.json").read_text())
    quality = after.pop("quality")
    assert after.pop("lm_eval") == {"colours": {"acc": side}}
    assert after == before and check(folder).ok
    assert list(quality) == ["16 windows", "wiki"] and quality["16 windows"]["versions"] == before["versions"]
    text = (folder / "README.md").read_text()
    rows = [line for line in text.splitlines() if "512 tokens" in line]
    assert rows == [
        "| 16 windows (16 x 512 tokens) | of its kind | 20.00 | 30.00 ± 1.25 | 1.500x | 0.2500 ± 0.0125 | 62.5% | "
        "0.75 (0.63) |",
        "| wiki (16 x 512 tokens) | foreign | 20.00 | 30.00 | 1.500x | 0.2500 | 62.5% | - |",
    ]
    assert "| colours | acc | 0.5000 | 0.2500 ± 0.0312 |" in text
    assert "Not measured" not in text and "transformers loads this model like any other" in text


@pytest.mark.parametrize(
    ("text", "sampled", "source", "expected"),
    [
        ("16 windows", True, "self", "of its kind"),
        ("wiki", False, "self", "foreign"),
        ("16 windows", True, "wiki", "foreign"),
        ("wiki", False, "wiki", "the same file"),
        ("wiki2", False, "wiki", "another file"),
        ("wiki", False, "self:wiki", "the same file"),
        ("16 windows", True, "self:wiki", "foreign"),
        ("wiki", False, "chat", "foreign"),
        ("16 windows", True, "chat", "foreign"),
        ("wiki", False, None, "there was none"),
    ],
)
def test_likeness(text: str, sampled: bool, source: str | None, expected: str) -> None:
    assert (
        likeness(text, sampled, None if source is None else {"sources": [{"source": source}, {"source": "chat"}]})
        == expected
    )


def test_a_folder_without_a_label_is_refused(tiny_pruned_folder: Path, tiny_model_folder: Path) -> None:
    for folder in (tiny_pruned_folder, tiny_model_folder):  # the first has a manifest, not one of `prune`
        with pytest.raises(InputError, match="has no label of twofour prune"):
            add_quality(folder, "wiki", FIGURES)


def test_a_label_with_half_a_character_is_refused(manifest: dict[str, Any], pruned: Path, tmp_path: Path) -> None:
    shutil.copytree(pruned, tmp_path / "copy")
    manifest["origin"]["commit"] = "\ud800"
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"twofour\.json is no label as twofour prune writes it \(UnicodeEncode"):
        convert(tmp_path / "copy", tmp_path / "out", "dense")
    assert not (tmp_path / "out").exists()
