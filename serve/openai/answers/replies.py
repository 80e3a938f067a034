"""The bodies of answers. A required field is always there, even if it is null; an optional one (`NotRequired`) is left
out when it is empty. OpenAI's schema wants it so."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from twofour.serve.engine.types import Finish
from twofour.serve.openai.answers.choice import Delta

FinishReason = Literal["stop", "length"]
LEAST_LOGPROB = -9999.0  # JSON has no infinity; this is OpenAI's value for it


class CachedTokens(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Envelope(TypedDict):
    """The fields that all chunks of a stream share, and the one answer has."""

    id: str
    object: str
    created: int
    model: str


class Reply(Envelope):
    choices: Sequence[Any]
    usage: NotRequired[Usage]


class CompletionLogprobs(TypedDict):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class Writer(Protocol):
    """Writes the answers of one endpoint."""

    id_prefix: str
    kind: str
    chunk_kind: str

    def whole(self, delta: Delta) -> CompletionChoice | ChatChoice: ...

    def chunks(self, delta: Delta) -> Sequence[CompletionChoice | ChatChunkChoice]: ...

    def opening(self, index: int) -> Sequence[CompletionChoice | ChatChunkChoice]:
        """What comes before the first token of a choice."""


def finish_reason(finish: Finish | None) -> FinishReason | None:
    """A sequence that ended in another way is answered with an error."""
    reasons: dict[Finish | None, FinishReason] = {Finish.STOP: "stop", Finish.LENGTH: "length"}
    return reasons.get(finish)


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
