"""What happens to every name in a request, at any depth: none is ignored in silence.

A name is served (a field of a model in protocol.py), or ignored because it changes nothing (`IGNORED`), or refused: a
known name unless its value asks for what happens anyway (`NEUTRAL`), an unknown name always. null asks for nothing and
always passes. docs/parameters.md is this as a table.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from twofour.serve.edge.errors import RequestError, invalid, unsupported
from twofour.serve.openai.protocol import JsonSchema, Message, ResponseFormat, StreamOptions, Strict

Values = tuple[object, ...]

# Fields of a body -> the values that change nothing.
NEUTRAL: Mapping[str, Values] = {
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
    "verbosity": ("medium",),
    "moderation": (),
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
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "prompt_embeds": (),
    "logits_processors": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),  # there are none in the text
    "include_stop_str_in_output": (False,),
    "detokenize": (True,),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),  # this and the next three: vllm-router adds them to every request
    "stream_reasoning": (True,),
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "stream_interval": (1,),
    "request_id": (),
    "session_id": (),
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
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "mm_processor_kwargs": ({},),
    "vllm_xargs": ({},),
    "repetition_detection": (),
    "thinking_token_budget": (),
    "watermarking": (),
}
# The same for the parts of a body.
INNER: Mapping[type[Strict], Mapping[str, Values]] = {
    Message: {
        "name": (),
        "type": ("text", "message"),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "refusal": ("",),
        "audio": (),
        "annotations": ([],),
        "reasoning": ("",),
        "reasoning_content": ("",),
    },
    StreamOptions: {"include_obfuscation": (False,)},
    ResponseFormat: {},
    JsonSchema: {},
}
# In a body, in a message, and in a part of one. They are about the client, or meant for another server.
IGNORED = frozenset(
    ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
)
IGNORED_IN_MESSAGES = frozenset(("provider_specific_fields",))
IGNORED_IN_PARTS = frozenset(("cache_control",))
PART = frozenset(("type", "text"))

DESCRIBE = "describe the tools in a message, and ask for their arguments with response_format"
FORMAT = "use response_format"
REMEDIES = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "tool_calls", "tool_call_id"), DESCRIBE),
    **dict.fromkeys(("structured_outputs", "guided_json", "json_schema", "schema"), f"{FORMAT} json_schema"),
    **dict.fromkeys(("guided_regex", "regex"), f'{FORMAT} with the schema {{"type": "string", "pattern": ...}}'),
    "guided_choice": f'{FORMAT} with the schema {{"enum": [...]}}',
    **dict.fromkeys(("max_new_tokens", "n_predict", "max_length"), "use max_tokens"),
    "min_new_tokens": "use min_tokens",
    "prompt_logprobs": "use echo with logprobs, of /v1/completions",
    "request_id": "send it as the header X-Request-Id",
    "name": "write it into the content",
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), "the template is the operator's"),
}
LONGEST_NAME = 100  # characters of a name that an error repeats


def refuse_unserved(body: Strict) -> None:
    """Refuse the first name that is not served, neutral or ignored."""
    check_names(body.model_extra or {}, NEUTRAL, IGNORED)
    for place, part in inner(body):
        if isinstance(part, Strict):
            more = IGNORED_IN_MESSAGES if isinstance(part, Message) else frozenset[str]()
            check_names(part.model_extra or {}, INNER[type(part)], more, place)
        elif part.get("type") == "text":  # other parts are refused later
            check_names({name: part[name] for name in part.keys() - PART}, {}, IGNORED_IN_PARTS, place)


def inner(body: Strict, place: str = "") -> Iterator[tuple[str, Strict | dict[str, Any]]]:
    """The parts of a body that have names in them, each with its place."""
    for field in type(body).model_fields:
        value = getattr(body, field)
        if isinstance(value, Strict):
            yield from within(value, f"{place}{field}")
        elif field == "messages":
            for index, message in enumerate(value or ()):
                yield from within(message, f"messages[{index}]")
        elif isinstance(body, Message) and isinstance(value, list):
            yield from ((f"{place}content[{index}].", part) for index, part in enumerate(value))


def within(part: Strict, name: str) -> Iterator[tuple[str, Strict | dict[str, Any]]]:
    yield f"{name}.", part
    yield from inner(part, f"{name}.")


def check_names(
    given: Mapping[str, object], neutral: Mapping[str, Values], ignored: frozenset[str], place: str = ""
) -> None:
    for name, value in given.items():
        if value is None or name in ignored or any(same(value, other) for other in neutral.get(name, ())):
            continue
        raise refusal(place, name, name in neutral)


def refusal(place: str, name: str, known: bool) -> RequestError:
    remedy = REMEDIES.get(name, "leave it out")
    where = f"{place}{name[:LONGEST_NAME]}"
    if known:
        return unsupported(where, remedy)
    return invalid(f"{where} is no parameter that this server knows; {remedy}", where, "unknown_parameter")


def same(value: object, neutral: object) -> bool:
    """Equal, and of one kind: true is not 1."""
    return isinstance(value, bool) is isinstance(neutral, bool) and value == neutral
