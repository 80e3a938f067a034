"""What clients may send. Types are strict: "4" is not 4, true is not 1. Unknown fields pass and are counted.

Fields that OpenAI or vLLM know and this server does not implement are refused unless their value is neutral
(`NEUTRAL`): ignored in silence, they would change what the answer means.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from twofour.serve.edge.errors import invalid, unsupported

MAX_LOGPROBS = 20
MAX_N = 128
MAX_PROMPTS = 128
MAX_BIASES = 300
INT64 = 2**63
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Strict):
    document: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # it is followed exactly either way


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(Strict):
    """What completions and chat share. None means the default, as in OpenAI's own clients."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # As in vLLM:
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    # Taken and of no effect here: they say something about the client, not about the text.
    user: str | None = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None


class CompletionRequest(GenerationRequest):
    prompt: str | list[Any]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]


class ChatRequest(GenerationRequest):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class TokenizeRequest(Strict):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None  # default: true for a prompt, false for messages, whose template writes them
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]


# Field -> the values that change nothing. None never does.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "prompt_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "prompt_embeds": (),
    "logits_processors": ([],),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (False,),  # of a chat
    "echo": (False,),  # of a chat
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logprob_token_ids": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_prompt_text": (False,),
    "return_weight_versions": (False,),
    "priority": (0,),
    "cache_salt": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": ({},),
    "repetition_detection": (),
    "thinking_token_budget": (),
    "watermarking": (),
}


DESCRIBE = "describe the tools in a message, and ask for their arguments with response_format"
REMEDIES = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), DESCRIBE),
    **dict.fromkeys(("structured_outputs", "guided_json"), "use response_format"),
    "chat_template_kwargs": "the template is the operator's",
    "chat_template": "the template is the operator's",
}


def refuse_unsupported(body: Strict) -> int:
    """Refuse what is known and not implemented; return how many fields nobody knows."""
    extra = body.model_extra or {}
    for field, neutral in NEUTRAL.items():
        value = extra.get(field)
        if value is not None and not any(same(value, other) for other in neutral):
            raise unsupported(field, REMEDIES.get(field, "leave it out"))
    return sum(field not in NEUTRAL for field in extra)


def same(value: object, neutral: object) -> bool:
    """Equal, and both numbers or neither: true is not 1."""
    return isinstance(value, bool) is isinstance(neutral, bool) and value == neutral


def check_together(body: GenerationRequest) -> None:
    """The rules that join two fields."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    if isinstance(body, ChatRequest) and body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    if isinstance(body, CompletionRequest) and body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens: 0 needs echo: true", "max_tokens")
