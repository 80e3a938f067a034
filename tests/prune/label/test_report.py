"""The report of a run: the losses stand where they belong, and the page needs nothing but itself."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from twofour.prune import PruneConfig, prune
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json
from twofour.prune.label import charts
from twofour.prune.label.publish import add_quality
from twofour.prune.label.report import by_kind_and_depth, page, worst

LINEARS = {
    "model.layers.0.self_attn.q_proj": {"loss": 0.25},
    "model.layers.0.mlp.experts.0.up_proj": {"loss": 0.125},
    "model.layers.0.mlp.experts.1.up_proj": {"loss": 0.375},
    "model.layers.1.self_attn.q_proj": {"loss": 0.5},
}


class Tags(HTMLParser):
    """The tags of a page, each with its attributes; every one that is opened must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture(scope="module")
def pruned(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "tiny-2of4"
    prune(tiny_model_folder, out, PruneConfig(preset="best", samples=8, length=32))
    return out


@pytest.fixture
def manifest(pruned: Path) -> dict[str, Any]:
    return read_json(pruned / MANIFEST)


def test_a_run_leaves_a_page_that_stands_alone(pruned: Path, manifest: dict[str, Any]) -> None:
    text = (pruned / "report.html").read_text()
    assert text == page(manifest, "tiny-2of4") and len(text) < 60_000
    tags = Tags(text).found
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert not any({"src", "href"} & attributes.keys() for _, attributes in tags) and "url(" not in text
    assert [tag for tag, _ in tags].count("svg") == [tag for tag, _ in tags].count("desc") == 2
    assert "No block was trained." not in text and f">{manifest['recovery']['model']['after']:.4f}<" in text


def test_trained_blocks_have_a_chart(manifest: dict[str, Any]) -> None:
    outcomes = [{"before": 0.5, "after": 0.25, "passes": 2}, {"before": 0.75, "after": 0.125, "passes": 2}]
    text = page({**manifest, "recovery": {**manifest["recovery"], "blocks": outcomes}}, "m")
    for outcome in outcomes:
        assert f"<td>{outcome['before']:.4f}</td><td>{outcome['after']:.4f}</td>" in text
    untrained = page({**manifest, "recovery": None}, "m")
    assert untrained.count("<svg") == untrained.count("<desc") == 1 and "No block was trained." in untrained


def test_measured_quality_comes_onto_the_page(pruned: Path) -> None:
    assert "Not measured yet" in (pruned / "report.html").read_text()
    figures = {"window_tokens": 512, "windows": 2, "perplexity": 30.0, "baseline_perplexity": 20.0}
    figures |= {"kl_nats": 0.25, "agreement": 0.625, "sampled": False, "perplexity_error": None, "kl_error": 0.1}
    add_quality(pruned, "<wiki>", figures)
    text = (pruned / "report.html").read_text()
    assert "<td>&lt;wiki&gt; (2 x 512 tokens)</td>" in text and "<td>1.500x</td>" in text
    assert "<td>0.2500 ± 0.1000</td>" in text
    assert "Not measured yet" not in text


def test_losses_by_kind_and_depth() -> None:
    assert by_kind_and_depth(LINEARS) == {"q_proj": [0.25, 0.5], "up_proj": [0.25, None]}
    assert [loss for _, loss in worst(LINEARS)] == [0.5, 0.375, 0.25, 0.125]


def test_cells_are_as_dark_as_their_values() -> None:
    svg = charts.cells("t", "d", {"a<b": [0.0, 0.5, None], "c": [1.0, 0.25, 0.0]}, "block")
    found = re.findall(r'x="([\d.]+)" y="(\d+)" width="([\d.]+)" height="\d+" fill-opacity="([\d.]+)"', svg)
    shades = [(float(shade) - 0.06) / 0.94 for *_, shade in found]
    assert shades == pytest.approx([0, 0.5, 1, 0.25, 0], abs=1e-3)
    left = [float(x) for x, *_ in found]
    assert left[0] == left[2] < left[1] == left[3] < left[4]  # the hole is at the end of the first row
    assert float(left[0]) + float(found[0][2]) == pytest.approx(left[1])
    assert "a&lt;b" in svg


def test_curves_stand_as_high_as_their_values() -> None:
    svg = charts.curves("t", "d", {"before": [1.0, 4.0], "after": [0.0, 2.0]}, "block")
    paths = dict(re.findall(r'curve (\w+)" d="M([^"]+)"', svg))
    heights = {name: [float(pair.split(",")[1]) for pair in path.split(" L")] for name, path in paths.items()}
    zero = heights["after"][0]
    assert (zero - heights["after"][1]) / (zero - heights["before"][1]) == pytest.approx(0.5)
    assert (zero - heights["before"][0]) / (zero - heights["before"][1]) == pytest.approx(0.25)


@pytest.mark.parametrize("count", [1, 2])
def test_a_model_of_few_blocks_has_charts_too(count: int) -> None:
    assert "curve after" in charts.curves("t", "d", {"before": [0.5] * count, "after": [0.0] * count}, "block")
    assert "fill-opacity" in charts.cells("t", "d", {"q_proj": [0.0] * count}, "block")
