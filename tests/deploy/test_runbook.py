"""The table of faults in RUNBOOK.md: none is missing, and each test that it names is there."""

import ast
import re

import pytest
from deployed import DEPLOY, ROOT

ROWS = re.findall(r"^\| (\d+) \| .*? \| (.*?) \| .* \|$", (DEPLOY / "RUNBOOK.md").read_text(), re.MULTILINE)


def test_no_fault_is_missing() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 35))


@pytest.mark.parametrize(("number", "tests"), ROWS, ids=[number for number, _ in ROWS])
def test_each_test_of_a_fault_is_there(number: str, tests: str) -> None:
    named = re.findall(r"`(.*?)`", tests)
    assert named and ", ".join(f"`{name}`" for name in named) == tests
    for file, _, function in (name.partition("::") for name in named):
        found = ast.parse((ROOT / "tests" / file).read_text()).body
        functions = {each.name for each in found if isinstance(each, ast.FunctionDef)}
        assert function in functions if function else any(name.startswith("test_") for name in functions), function
