"""The model's tokenizer as the server uses it: off the event loop, never truncating, never guessing."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import TemplateError

from twofour.prune.errors import ModelError
from twofour.serve.edge.errors import RequestError, invalid, unsupported
from twofour.serve.openai.protocol import Message
from twofour.serve.openai.spelling import Spelling
from twofour.serve.openai.user_text import Said, StandIns, UserText

RENDER_DEADLINE_S = 2.0
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Ending:
    """How a rendered chat ends: at the assistant's turn, within its last message, or after it."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False


OPEN = Ending()


class Vocabulary:
    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError("the model has no fast tokenizer; convert it to tokenizer.json first")
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._user_text = UserText(self._backend)
        self._longest_token = max(map(len, self._backend.get_vocab(with_added_tokens=True)))
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self.spelling = Spelling(self._backend)

    def check_length(self, characters: int, limit: int, param: str) -> None:
        """Refuse unread, by its length alone, a text that cannot fit `limit` tokens."""
        if characters > limit * self._longest_token:
            raise too_long(limit, f"at least {characters // self._longest_token} tokens", param)

    async def encode(self, text: str, limit: int, param: str, special_tokens: bool = True) -> Tokens:
        self.check_length(len(text), limit, param)
        check_unicode(text, param)
        loop = asyncio.get_running_loop()
        encoding = await loop.run_in_executor(self._pool, self._encode, text, special_tokens)
        return tuple(encoding)

    async def encode_chat(
        self, messages: Sequence[Message], limit: int, ending: Ending = OPEN, special_tokens: bool = False
    ) -> Tokens:
        """Through the chat template. Only the template's special tokens count, and the tokenizer's own if asked for."""
        said = [{"role": role_of(message), "content": text_of(message)} for message in messages]
        self.check_length(sum(len(message["content"]) for message in said), limit, "messages")
        for message in said:
            check_unicode(message["content"], "messages")
        rendered, stand_ins = await self._rendered(said, ending)
        if not stand_ins and not self._user_text.is_blind:
            return await self.encode(rendered, limit, "messages", special_tokens)
        if special_tokens:
            raise unsupported("add_special_tokens", "the messages hold a special token")
        self.check_length(len(rendered), limit, "messages")
        loop = asyncio.get_running_loop()
        return tuple(await loop.run_in_executor(self._pool, self._user_text.encode, rendered, stand_ins))

    async def _rendered(self, said: Said, ending: Ending) -> tuple[str, StandIns]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise invalid("this model has no chat template; use /v1/completions", "messages")
        loop = asyncio.get_running_loop()
        try:
            rendering = loop.run_in_executor(self._pool, self._render, said, ending)
            return await asyncio.wait_for(rendering, RENDER_DEADLINE_S)
        except (TemplateError, ValueError) as error:
            message = f"the model's chat template refuses these messages: {str(error)[:200]}"
            raise invalid(message, "messages") from error
        except TimeoutError as error:
            raise invalid("the chat template takes too long; send fewer messages", "messages") from error

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return list(self._tokenizer.convert_ids_to_tokens(ids))

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)

    def _render(self, said: Said, ending: Ending) -> tuple[str, StandIns]:
        stand_ins = self._user_text.stand_ins(said)
        disguised = self._user_text.disguise(said, stand_ins) if stand_ins else said
        rendered = self._tokenizer.apply_chat_template(disguised, tokenize=False, **asdict(ending))
        return str(rendered), stand_ins


def role_of(message: Message) -> str:
    """Templates know no developer: OpenAI's newer name for the system."""
    return "system" if message.role == "developer" else message.role


def text_of(message: Message) -> str:
    """The text of a message; parts joined by line breaks. Nothing is ever fetched."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part_text(part) for part in message.content)


def part_text(part: dict[str, Any]) -> str:
    text = part.get("text")
    if part.get("type") != "text":
        raise invalid("only text parts are supported; send the text alone", "messages", "unsupported_parameter")
    if not isinstance(text, str):
        raise invalid("a text part needs the string text", "messages")
    return text


def check_unicode(text: str, param: str) -> None:
    """JSON can spell half a character (a lone surrogate), which no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{param}: invalid unicode; send whole characters", param) from error


def too_long(limit: int, amount: str, param: str) -> RequestError:
    """Worded so that LangChain and LiteLLM recognise it."""
    message = f"This model's maximum context length is {limit} tokens, but the prompt is too long: {amount}. "
    return invalid(f"{message}Shorten the prompt or ask for fewer tokens.", param, "context_length_exceeded")
