"""What crosses the pipe between the API process and the engine process, and how it becomes bytes.

Bytes are JSON: plain data, never pickles. Fields that have their default are left out.

    to the engine      EngineConfig once, then {"add": Prompt}, {"cancel": id}, {"stop": true}
    from the engine    {"info": EngineInfo} or {"failed": message} once, then {"report": Report} after each step, and
                       {"begun": tokens} before one that computes part of a prompt, which may be long
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twofour.serve.engine.types import (
    EngineConfig,
    EngineInfo,
    Failure,
    Finish,
    Logprob,
    Piece,
    Prompt,
    Sampling,
    Stats,
    StepRecord,
)


@dataclass(frozen=True)
class Cancel:
    """The client is gone: end this sequence."""

    id: str


@dataclass(frozen=True)
class Report:
    """What a step brought; without a step it is the heartbeat."""

    pieces: tuple[Piece, ...]
    stats: Stats
    step: StepRecord | None = None


Command = Prompt | Cancel


def encode(message: object) -> bytes:
    """One message as JSON bytes."""
    return _ENCODER.encode(message).encode()


def _plain(thing: Any) -> object:
    if isinstance(thing, Logprob):  # there are many of them: no names
        return thing.token, thing.logprob, thing.top
    defaults = _DEFAULTS[type(thing)]
    return {name: value for name, default in defaults.items() if (value := getattr(thing, name)) != default}


_CLASSES = (EngineConfig, EngineInfo, Prompt, Sampling, Report, Piece, Stats, StepRecord)
_DEFAULTS = {kind: {field.name: field.default for field in dataclasses.fields(kind)} for kind in _CLASSES}
_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"), check_circular=False)


def encode_command(command: Command | None) -> bytes:
    """None: stop."""
    if isinstance(command, Prompt):
        return encode({"add": command})
    return encode({"cancel": command.id} if command else {"stop": True})


def decode_command(data: bytes) -> Command | None:
    message = json.loads(data)
    if "add" in message:
        return _prompt(message["add"])
    return Cancel(message["cancel"]) if "cancel" in message else None


def decode_config(data: bytes) -> EngineConfig:
    return EngineConfig(**json.loads(data))


def decode_start(data: bytes) -> EngineInfo | str:
    """What was loaded, or why nothing could be."""
    message = json.loads(data)
    if "failed" in message:
        return str(message["failed"])
    info = message["info"]
    info["eos_token_ids"], info["notes"] = tuple(info["eos_token_ids"]), tuple(info.get("notes", ()))
    warm_step = StepRecord(**info.pop("warm_step")) if "warm_step" in info else None
    return EngineInfo(**info, warm_step=warm_step)


def decode_news(data: bytes) -> Report | int:
    """A report, or the number of tokens of a step that begins."""
    news = json.loads(data)
    return int(news["begun"]) if "begun" in news else decode_report(data)


def decode_report(data: bytes) -> Report:
    report = json.loads(data)["report"]
    step = StepRecord(**report["step"]) if "step" in report else None
    return Report(tuple(_piece(piece) for piece in report["pieces"]), Stats(**report["stats"]), step)


def _prompt(fields: Mapping[str, Any]) -> Prompt:
    sampling = dict(fields["sampling"])
    sampling["logit_bias"] = {int(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    sampling["stop_token_ids"] = tuple(sampling.get("stop_token_ids", ()))
    return Prompt(fields["id"], tuple(fields["tokens"]), Sampling(**sampling), fields.get("salt", ""))


def _piece(fields: dict[str, Any]) -> Piece:
    fields["tokens"] = tuple(fields.get("tokens", ()))
    fields["logprobs"] = tuple(_logprob(entry) for entry in fields.get("logprobs", ()))
    fields["prompt_logprobs"] = tuple(entry and _logprob(entry) for entry in fields.get("prompt_logprobs", ()))
    fields["finish"] = Finish(fields["finish"]) if "finish" in fields else None
    fields["failure"] = Failure(fields["failure"]) if "failure" in fields else None
    return Piece(**fields)


def _logprob(entry: list[Any]) -> Logprob:
    token, logprob, top = entry
    return Logprob(token, logprob, tuple((id, value) for id, value in top))
