import json
import math
from pathlib import Path

import pytest

from twofour.bench.comparison import quality
from twofour.bench.comparison.quality import Score
from twofour.prune.errors import InputError

EVAL = {
    "perplexity": 24.9,
    "baseline_perplexity": 17.2,
    "kl_nats": 0.41,
    "agreement": 0.71,
    "predictions": 8176,
    "text": "wiki.txt",
}


def test_from_scores_by_hand() -> None:
    dense = [Score("ab", [-1.0, -3.0], "ax"), Score("c", [-2.0], "c")]
    sparse = [Score("ab", [-2.0, -4.0], "bx"), Score("c", [-3.0], "c")]
    found = quality.from_scores(list(zip(dense, sparse, strict=True)), "text")
    assert found.dense_perplexity == pytest.approx(math.exp(2))
    assert found.sparse_perplexity == pytest.approx(math.exp(3))
    assert found.agreement == pytest.approx(2 / 3)
    assert (found.kl, found.tokens) == (None, 3)


def test_different_tokens_do_not_agree_or_disagree() -> None:
    pair = Score(["a", "b"], [-1.0, -1.0], ["a", "b"]), Score(["ab"], [-1.0], ["ab"])
    assert quality.from_scores([pair], "text").agreement is None


def test_what_eval_printed(tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(EVAL))
    found = quality.from_file(file)
    assert (found.dense_perplexity, found.sparse_perplexity) == (17.2, 24.9)
    assert (found.kl, found.agreement, found.tokens, found.text) == (0.41, 0.71, 8176, "wiki.txt")


@pytest.mark.parametrize("content", ["", "[]", '{"perplexity": 3}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(InputError, match="check --quality"):
        quality.from_file(file)
