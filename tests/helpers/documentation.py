"""The documentation taken apart: its pages, what they tell a reader to type, and what they say was printed."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"^<!-- (part of: )?(twofour .*?) -->\n(?:```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def commands() -> list[str]:
    """The lines of all console blocks, each once, in the order of the pages."""
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    return list(dict.fromkeys(lines))


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """What stands between backticks, with all white space one space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def words(line: str) -> list[str]:
    """The words of a command; those of a span that is none, by white space."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
