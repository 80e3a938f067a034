"""The documentation lists where vLLM behind the edge answers otherwise: the same list as the tests have."""

import re
from pathlib import Path

from engines import DEVIATIONS

SERVING = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def test_every_deviation_is_in_the_documentation() -> None:
    table = SERVING.partition("| with vLLM | why it stays so |")[2].partition("\n\n")[0]
    rows = {row.strip() for row in re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)}
    assert rows == set(DEVIATIONS.values())
