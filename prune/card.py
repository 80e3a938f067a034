"""The model card of a pruned folder, with the licence of the base model carried over."""

import re
from pathlib import Path

_LOADING = {
    "packed": (
        "The linears are packed: `twofour serve FOLDER`, `twofour.serve.load_model(FOLDER)`, or in transformers\n"
        '`import twofour.serve` and `from_pretrained(FOLDER, variant="twofour")`. Without that import transformers\n'
        "fills the linears with random numbers and only warns."
    ),
    "dense": "The linears are stored whole, zeros included: every tool that reads the base model reads this one.",
}


def write_card(folder: Path, source: Path, format: str, model: str | None) -> None:
    """Write README.md."""
    base = model or source.resolve().name
    lines = ["---", *_licence_lines(source), "library_name: transformers"]
    if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists():
        lines.append(f"base_model: {model}")
    lines += ["tags:", "- twofour", "- 2:4", "- sparsity", "---", "", f"# {base}, 2:4 sparse", ""]
    lines += ["In every group of four inputs of every pruned linear at most two weights are not zero.", ""]
    lines += [
        _LOADING[format],
        "",
        "`twofour.json` says how it was made and what it lost; `twofour check` verifies it.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def licence(source: Path) -> str | None:
    """Return the licence that a model's card declares."""
    for line in _licence_lines(source):
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("\"'") or None
    return None


def _licence_lines(source: Path) -> list[str]:
    """The lines of the card's front matter that speak of the licence, as they stand."""
    card = source / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\r?\n(.*?)\r?\n---\s*(\n|$)", text, re.DOTALL)
    return re.findall(r"^license(?:_name|_link)?: *\S.*$", front[1], re.MULTILINE) if front else []
