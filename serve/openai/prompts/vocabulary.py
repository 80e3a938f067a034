"""The model's tokenizer as the server uses it: in threads, without truncation, without guesses."""

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
from twofour.serve.openai.prompts.user_text import PlainMessages, StandIns, UserText
from twofour.serve.openai.protocol import Message

RENDER_DEADLINE_S = 2.0
# While it is encoded, a text takes some 80 bytes for each character; and one token may be 80 spaces. So there are two
# limits: for texts that cannot fit, and for those that take too much memory to find out.
MOST_TO_A_TOKEN = 8  # of a whole text; prose has 4 to 5
ALWAYS_READ = 1 << 18
Tokens = tuple[int, ...]
Refusal = Callable[[int, str, str], RequestError]  # takes the limit, the amount, and the parameter


@dataclass(frozen=True)
class Ending:
    """How a rendered chat ends: at the assistant's turn, within its last message, or after it."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False


OPEN = Ending()


def too_long(limit: int, amount: str, param: str) -> RequestError:
    """LangChain and LiteLLM recognise these words."""
    message = f"This model's maximum context length is {limit} tokens, but the prompt is too long: {amount}. "
    return invalid(f"{message}Shorten the prompt or ask for fewer tokens.", param, "context_length_exceeded")


@contextmanager
def answering(refusal: Refusal, limit: int, param: str) -> Iterator[None]:
    """TooManyTokens becomes an error for the client."""
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
        """Refuses only what is far over the limit. The caller, who has the count, checks whether it fits."""
        self._check_length(len(text), limit, param, refusal)
        with answering(refusal, limit, param):
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
        with answering(refusal, limit, "messages"):
            return tuple(await self.threads.run(len(rendered), self._user_text.encode, rendered, stand_ins, limit))

    def _check_length(self, characters: int, limit: int, param: str, refusal: Refusal) -> None:
        """Refuse by its length a text that cannot fit `limit` tokens, or that would take too much memory to encode."""
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
        # A batch of one: for a single list, no other thread would run until it is done.
        return str(self._backend.decode_batch([ids], skip_special_tokens=False)[0])

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them."""
        return list(self._tokenizer.convert_ids_to_tokens(ids))

    def _render(self, messages: Sequence[Message], ending: Ending) -> tuple[str, StandIns]:
        plain: PlainMessages = [{"role": role_of(message), "content": message_text(message)} for message in messages]
        stand_ins = self._user_text.stand_ins(plain)
        disguised = self._user_text.disguise(plain, stand_ins) if stand_ins else plain
        rendered = self._tokenizer.apply_chat_template(disguised, tokenize=False, **asdict(ending))
        return str(rendered), stand_ins


def role_of(message: Message) -> str:
    """Templates do not know "developer", OpenAI's newer name for the system."""
    return "system" if message.role == "developer" else message.role


def characters(message: Message) -> int:
    """Of its text. Parts that are not text are refused later."""
    content = message.content
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    return sum(len(text) for text in texts if isinstance(text, str))


def message_text(message: Message) -> str:
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
