"""Quality of the two arms: of folders as `twofour eval` measures it, of servers through echo and logprobs.

Servers are scored on text that the dense one writes itself at temperature 1 from a few seeded first words, so
that no data set is needed. Perplexity is exp of the mean negative log-probability over all tokens but each
text's first. Agreement is the share of positions where both name the same likeliest token. KL needs whole
distributions, which the API does not give: None.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from twofour.bench import child
from twofour.bench.load import workload
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.wire import shown
from twofour.bench.load.workload import Lengths
from twofour.prune.errors import InputError, ServerError

_TEXTS = 8
_TEXT_TOKENS = 96
_FIRST_WORDS = 8
_PIECE_CHARACTERS = 1500


@dataclass(frozen=True)
class Quality:
    """None: not measured. KL in nats per token, from dense to 2:4."""

    dense_perplexity: float | None
    sparse_perplexity: float | None
    kl: float | None
    agreement: float | None
    tokens: int | None
    text: str
    source: str


def of_models(dense: str, sparse: str, text: Path | None, rounding: Sequence[str] = ()) -> Quality:
    """Run `twofour eval`: the same loading as the server's, in a process that leaves no memory behind."""
    given = [*rounding, *(["--text", str(text)] if text else [])]
    document = child.twofour("eval", sparse, "--baseline", dense, *given, remedy="see above, or give --no-quality")
    return from_eval(document, "twofour eval")


def from_file(path: Path) -> Quality:
    try:
        return from_eval(json.loads(path.read_text()), str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what eval --baseline --json prints ({error!r}); check --quality") from error


def from_eval(document: Mapping[str, Any], source: str) -> Quality:
    return Quality(
        dense_perplexity=document["baseline_perplexity"],
        sparse_perplexity=document["perplexity"],
        kl=document["kl_nats"],
        agreement=document["agreement"],
        tokens=document["predictions"],
        text=document["text"],
        source=source,
    )


def of_servers(dense: Endpoint, sparse: Endpoint, text: Path | None, seed: int) -> Quality | None:
    """None where a server cannot echo with logprobs."""
    try:
        texts = _pieces(text) if text else _written_by(dense, seed)
        scores = [(_score(dense, piece), _score(sparse, piece)) for piece in texts]
    except ServerError as error:
        print(f"quality is not measured: {error}", file=sys.stderr)
        return None
    return from_scores(scores, str(text) if text else "sampled from the dense server")


@dataclass(frozen=True)
class Score:
    """One text by one model: all tokens but the first, their log-probabilities, the likeliest token in each place."""

    tokens: Sequence[str]
    logprobs: Sequence[float]
    likeliest: Sequence[str]


def from_scores(scores: Sequence[tuple[Score, Score]], text: str) -> Quality:
    same_tokens = all(dense.tokens == sparse.tokens for dense, sparse in scores)
    pairs = [
        one == other for dense, sparse in scores for one, other in zip(dense.likeliest, sparse.likeliest, strict=False)
    ]
    return Quality(
        dense_perplexity=_perplexity([dense for dense, _ in scores]),
        sparse_perplexity=_perplexity([sparse for _, sparse in scores]),
        kl=None,
        agreement=fmean(pairs) if same_tokens and pairs else None,
        tokens=sum(len(dense.tokens) for dense, _ in scores),
        text=text,
        source="echo and logprobs of the servers",
    )


def _perplexity(scores: Sequence[Score]) -> float | None:
    logprobs = [logprob for score in scores for logprob in score.logprobs]
    return math.exp(-fmean(logprobs)) if logprobs else None


def _written_by(dense: Endpoint, seed: int) -> list[str]:
    starts = workload.schedule(_TEXTS, Lengths(_FIRST_WORDS), Lengths(_TEXT_TOKENS), seed)
    return [start.prompt + _continued(dense, start.prompt, seed + start.index) for start in starts]


def _continued(dense: Endpoint, prompt: str, seed: int) -> str:
    question = {"prompt": prompt, "max_tokens": _TEXT_TOKENS, "temperature": 1.0, "seed": seed}
    return str(_choice(dense, question)["text"])


def _score(endpoint: Endpoint, text: str) -> Score:
    question = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0.0}
    given: Any = _choice(endpoint, question).get("logprobs")
    try:
        return Score(
            given["tokens"][1:],
            [float(logprob) for logprob in given["token_logprobs"][1:]],
            [max(top, key=top.get) for top in given["top_logprobs"][1:]],
        )
    except (KeyError, TypeError, ValueError):
        raise ServerError(f"{shown(endpoint.url)} does not score a prompt (echo with logprobs)") from None


def _choice(endpoint: Endpoint, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        choice: dict[str, Any] = endpoint.ask("/v1/completions", question)["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise ServerError(f"{shown(endpoint.url)} answers a completion without choices") from None
    return choice


def _pieces(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")[: _TEXTS * _PIECE_CHARACTERS]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); check --text") from error
    pieces = [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]
    if not pieces:
        raise InputError(f"{path} is empty; give a text with --text, or none")
    return pieces
