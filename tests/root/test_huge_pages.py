import os
import subprocess
import sys

import pytest

from twofour import huge_pages

MADVISE = "always [madvise] never"


@pytest.mark.parametrize(
    ("current", "setting", "expected"),
    [
        ({}, MADVISE, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}, MADVISE, "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, MADVISE, None),
        ({}, "[always] madvise never", None),
        ({}, "always madvise [never]", None),
        ({}, "", None),
    ],
)
def test_huge_pages_are_asked_for_where_asking_helps(
    current: dict[str, str], setting: str, expected: str | None
) -> None:
    changed = huge_pages.environment({"HOME": "/", **current}, setting)
    assert changed == (None if expected is None else {"HOME": "/", "GLIBC_TUNABLES": expected})


@pytest.mark.skipif(
    not huge_pages.SETTING.is_file() or "[madvise]" not in huge_pages.SETTING.read_text(),
    reason="this system gives huge pages to all or to none",
)
def test_a_process_starts_itself_again_once_with_its_arguments() -> None:
    code = "import os, sys; from twofour.huge_pages import adopt; adopt(); print(os.environ[sys.argv[1]], sys.argv)"
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    asked = subprocess.run(
        [sys.executable, "-c", code, "GLIBC_TUNABLES", "two"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == "glibc.malloc.hugetlb=1 ['-c', 'GLIBC_TUNABLES', 'two']\n"
