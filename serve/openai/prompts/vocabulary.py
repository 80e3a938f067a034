"""The model's tokenizer as the server uses it: off the event loop, never truncating, never guessing."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from jinja2 import TemplateError

from twofour.prune.errors import ModelError
from twofour.serve.edge.errors import RequestError, invalid, unsupported
from twofour.serve.openai.prompts.encoding import Encoder, TooManyTokens
from twofour.serve.openai.prompts.spelling import Spelling
from twofour.serve.openai.prompts.threads import Threads
from twofour.serve.openai.prompts.user_text import Said, StandIns, UserText
from twofour.serve.openai.protocol import Message

RENDER_DEADLINE_S = 2.0
# A text takes some 80 bytes a character while it is encoded, and spaces come 80 to a token. So there are two limits:
# what surely cannot fit, and what takes too much to find out.
MOST_TO_A_TOKEN = 8  # of a whole text; prose has 4 to 5
ALWAYS_READ = 1 << 18
Tokens = tuple[int, ...]
Refusal = Callable[[int, str, str], RequestError]  # of the limit, what there is, and the parameter


@dataclass(frozen=True)
class Ending:
    """How a rendered chat ends: at the assistant's turn, within its last message, or after it."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False


OPEN = Ending()


def too_long(limit: int, amount: str, param: str) -> RequestError:
    """Worded so that LangChain and LiteLLM recognise it."""
    message = f"This model's maximum context length is {limit} tokens, but the prompt is too long: {amount}. "
    return invalid(f"{message}Shorten the prompt or ask for fewer tokens.", param, "context_length_exceeded")


@contextmanager
def refused(refusal: Refusal, limit: int, param: str) -> Iterator[None]:
    """Too many tokens as an answer to the client."""
    try:
        yield
    except TooManyTokens as error:
        raise refusal(limit, str(error), param) from error


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
        self._encoder = Encoder(self._backend)
        self.threads = Threads()
        self.spelling = Spelling(self._backend)

    async def encode(
        self, text: str, limit: int, param: str, special_tokens: bool = True, refusal: Refusal = too_long
    ) -> Tokens:
        """Refuses what is far over the limit; whether it fits is for the caller, who has the count."""
        self._check_length(len(text), limit, param, refusal)
        with refused(refusal, limit, param):
            return tuple(await self.threads.run(len(text), self._encoder.encode, text, limit, special_tokens))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        limit: int,
        ending: Ending = OPEN,
        special_tokens: bool = False,
        refusal: Refusal = too_long,
    ) -> Tokens:
        """Through the chat template. Only the template's special tokens count, and the tokenizer's own if asked for."""
        self._check_length(sum(map(characters, messages)), limit, "messages", refusal)
        rendered, stand_ins = await self._rendered(messages, ending)
        if not stand_ins and not self._user_text.is_blind:
            return await self.encode(rendered, limit, "messages", special_tokens, refusal)
        if special_tokens:
            raise unsupported("add_special_tokens", "the messages hold a special token")
        self._check_length(len(rendered), limit, "messages", refusal)
        with refused(refusal, limit, "messages"):
            return tuple(await self.threads.run(len(rendered), self._user_text.encode, rendered, stand_ins, limit))

    def _check_length(self, characters: int, limit: int, param: str, refusal: Refusal) -> None:
        """Refuse unread, by its length alone, a text that cannot fit `limit` tokens or is not worth a try."""
        if characters > limit * self._longest_token:
            raise refusal(limit, f"at least {characters // self._longest_token} tokens", param)
        if characters > max(limit * MOST_TO_A_TOKEN, ALWAYS_READ):
            raise refusal(limit, f"{characters} characters", param)

    async def _rendered(self, messages: Sequence[Message], ending: Ending) -> tuple[str, StandIns]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise invalid("this model has no chat template; use /v1/completions", "messages")
        try:
            rendering = asyncio.to_thread(self._render, messages, ending)
            return await asyncio.wait_for(rendering, RENDER_DEADLINE_S)
        except (TemplateError, ValueError) as error:
            message = f"the model's chat template refuses these messages: {str(error)[:200]}"
            raise invalid(message, "messages") from error
        except TimeoutError as error:
            raise invalid("the chat template takes too long; send fewer messages", "messages") from error

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        # A batch of one: for a single list the interpreter would be held until it is done.
        return str(self._backend.decode_batch([ids], skip_special_tokens=False)[0])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return list(self._tokenizer.convert_ids_to_tokens(ids))

    def _render(self, messages: Sequence[Message], ending: Ending) -> tuple[str, StandIns]:
        said: Said = [{"role": role_of(message), "content": text_of(message)} for message in messages]
        stand_ins = self._user_text.stand_ins(said)
        disguised = self._user_text.disguise(said, stand_ins) if stand_ins else said
        rendered = self._tokenizer.apply_chat_template(disguised, tokenize=False, **asdict(ending))
        return str(rendered), stand_ins


def role_of(message: Message) -> str:
    """Templates know no developer: OpenAI's newer name for the system."""
    return "system" if message.role == "developer" else message.role


def characters(message: Message) -> int:
    """Of its text; parts that are no text are refused when it is rendered."""
    content = message.content
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    return sum(len(text) for text in texts if isinstance(text, str))


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
