"""What clients may send. Types are strict: "4" is not 4, true is not 1.

Other fields are looked up in parameters.py, which refuses them unless it knows that they change nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from twofour.serve.edge.errors import invalid

MAX_LOGPROBS = 20
MAX_N = 128
MAX_PROMPTS = 128
MAX_BIASES = 300
MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of all messages together
MAX_COUNTED_TOKENS = 1 << 15  # by /tokenize and /detokenize at a time, unless the context is longer
INT64 = 2**63
SHORT = 1024  # characters
StopString = Annotated[str, StringConstraints(min_length=1, max_length=SHORT)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Dropped = Annotated[None, BeforeValidator(lambda given: None)]  # it may be large, and nobody reads it


def few_biases(given: object) -> object:
    """Count before pydantic reads them; itself it counts at the end."""
    if isinstance(given, dict) and len(given) > MAX_BIASES:
        raise ValueError(f"more than {MAX_BIASES} biases")
    return given


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Strict):
    document: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # with both values the schema is followed exactly


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(Strict):
    """What completions and chat share. None means the default, as in OpenAI's own clients."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: StopString | Annotated[list[StopString], Field(max_length=4, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(few_biases)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # As in vLLM:
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=SHORT)] | None = None
    # Without effect here (parameters.IGNORED): they are about the client, not about the text.
    user: str | None = None
    metadata: Dropped = None
    safety_identifier: Dropped = None
    prompt_cache_key: Dropped = None
    prompt_cache_retention: Dropped = None
    parallel_tool_calls: Dropped = None


class CompletionRequest(GenerationRequest):
    prompt: str | list[Any]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def let_others_run(cls, given: object) -> object:
        """Python code for each message, so that other threads can run between two; pydantic alone lets none."""
        return given


def few_parts(messages: list[Message]) -> list[Message]:
    if sum(len(message.content) for message in messages if isinstance(message.content, list)) > MAX_PARTS:
        raise ValueError(f"more than {MAX_PARTS} parts")
    return messages


# Here and above, lists fail fast: collecting the faults of all items takes far longer than reading them.
Messages = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), AfterValidator(few_parts)
]


class ChatRequest(GenerationRequest):
    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class TokenizeRequest(Strict):
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None  # default: true for a prompt, false for messages, whose template writes them
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_COUNTED_TOKENS, fail_fast=True)]


def check_together(body: Strict) -> None:
    """The rules about two fields together."""
    if isinstance(body, GenerationRequest):
        check_stream(body)
        check_format(body)
    if isinstance(body, ChatRequest) and body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    if isinstance(body, CompletionRequest) and body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens: 0 needs echo: true", "max_tokens")
    if isinstance(body, TokenizeRequest) and body.messages is None:
        for name in ("add_generation_prompt", "continue_final_message"):
            if getattr(body, name) is not None:
                raise invalid(f"{name} needs messages", name)


def check_stream(body: GenerationRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream: true", "stream_options")


def check_format(body: GenerationRequest) -> None:
    """A text with a schema ends when it is complete: it cannot go on after that."""
    given = body.response_format
    if given is None:
        return
    if given.json_schema is not None and given.type != "json_schema":
        raise invalid(f"response_format: a json_schema needs the type json_schema, not {given.type}", "response_format")
    for name in ("min_tokens", "ignore_eos"):
        if given.type != "text" and getattr(body, name):
            message = f"{name} cannot be kept where response_format ends the text; leave one of them out"
            raise invalid(message, name, "unsupported_parameter")
