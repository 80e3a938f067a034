from collections.abc import Iterator

import pytest

from twofour.bench.load.records import Chunks
from twofour.bench.load.run import Run
from twofour.bench.proof.defects import DEFECTS, Defect
from twofour.bench.proof.mock import Mock, Script
from twofour.bench.proof.truth import against, closed


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_defect_is_noticed_or_harmless(defect: Defect) -> None:
    found = defect.find()
    assert found.defect == defect.name
    assert found.outcome in ("neutralised", "detected") or (defect is DEFECTS[-1] and found.outcome == "not measured")


@pytest.fixture(scope="module")
def good() -> Iterator[tuple[Run, Mock]]:
    yield against(Script(first_token_s=0.02, token_s=0.01), closed(8, 8, 8, 2, sigma=0.0))


@pytest.mark.parametrize("at", [2, 3, 5, 6, 7, 8])
def test_nothing_is_found_in_a_run_without_defects(at: int, good: tuple[Run, Mock]) -> None:
    assert DEFECTS[at].judge(*good)[0] == "missed"


def test_a_chunk_that_the_client_did_not_see_is_missed(good: tuple[Run, Mock]) -> None:
    run, mock = good
    judge = DEFECTS[0].judge
    assert judge(run, mock)[0] == "neutralised"
    whole = run.records[3].chunks
    run.records[3].chunks = whole[:-1]
    assert judge(run, mock) == ("missed", "request 3: other chunks than were written")
    run.records[3].chunks = Chunks([whole.at[0] - 1, *whole.at[1:]], whole.tokens)
    assert judge(run, mock) == ("missed", "request 3 has its first token before it was written")
