"""The pages of the documentation hang together: links lead somewhere, pictures are shown, the README is short."""

import re
from pathlib import Path

import pytest
from documentation import FENCE, PAGES, README, ROOT, name, prose

ALL = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "deploy").glob("*.md"))]
TWO_SCREENS = 120  # lines
PUBLIC = {
    *("twofour.prune.prune", "twofour.prune.pack", "twofour.prune.check", "twofour.prune.Packed"),
    *("twofour.serve.load_model", "twofour.serve.evaluate", "twofour.serve.create_app", "twofour.bench.compare"),
    *("twofour.prune", "twofour.serve", "twofour.bench", "twofour.bench.plan"),
    "twofour.prune.format.rounding.to_int8",
}

each_page = pytest.mark.parametrize("page", ALL, ids=name)


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'src="(.*?)"', prose(page))
    return [link for link in found if not link.startswith(("http://", "https://"))]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{name(page)} links to {link}, and there is no such file"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {link}, and there is no such heading"


def test_every_page_and_picture_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in ALL for link in links(page)}
    assert not set((ROOT / "docs").iterdir()) - linked


@each_page
def test_a_page_begins_with_what_it_is(page: Path) -> None:
    title, first = page.read_text().splitlines()[:2]
    assert title.startswith("# ") and first and not first.startswith(("#", "|", "`" * 3))


def test_the_readme_is_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= TWO_SCREENS


def test_figures_of_the_readme_are_printed() -> None:
    """Outside of its generated blocks it states no ratio, share, time or price."""
    assert not re.findall(r"\$\d|\d(?:x\b| ?%| ?ms\b| GB/s)", prose(README))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("house.md", "documents.md")], ids=name)
def test_python_names_are_public(page: Path) -> None:
    """Where else a thing is defined is the house's business: modules move. Kinds of documents are no modules."""
    named = re.findall(r"\btwofour\.(?:prune|serve|bench)\b(?:\.\w+)*", page.read_text())
    assert set(named) <= PUBLIC
