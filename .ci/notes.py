"""Print the notes of a release, which is what CHANGELOG.md says of its version: python .ci/notes.py v0.1.0

A tag that is not the version of the package is refused, and so is a section that is missing, has no date or is empty.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^## (?P<name>\S+)(?P<date> - \d{4}-\d\d-\d\d)?$", re.MULTILINE)


def notes(changelog: str, version: str) -> str:
    found = [match for match in HEADING.finditer(changelog) if match["name"] == version]
    if not found or not found[0]["date"]:
        raise SystemExit(f'CHANGELOG.md has no section "## {version} - YEAR-MONTH-DAY"; give that name to "Unreleased"')
    section = changelog[found[0].end() :].partition("\n## ")[0].strip()
    if not any(line and not line.startswith("#") for line in section.splitlines()):
        raise SystemExit(f"CHANGELOG.md says nothing of {version}; write what a user can see of it")
    return section


def package_version(source: str) -> str:
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if not found:
        raise SystemExit('root/__init__.py has no line __version__ = "..."; give it one')
    return found[1]


def main(tag: str) -> None:
    version = package_version((ROOT / "root" / "__init__.py").read_text())
    if tag != f"v{version}":
        raise SystemExit(
            f"the tag is {tag} and the version {version}; tag v{version}, or change root/__init__.py first"
        )
    print(notes((ROOT / "CHANGELOG.md").read_text(), version))


if __name__ == "__main__":
    main(sys.argv[1])
