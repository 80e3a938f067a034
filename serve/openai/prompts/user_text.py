"""Special tokens that a user writes into a message stay text.

A chat template writes special tokens, `<|im_start|>` for instance, as text between the messages, and a tokenizer turns
that text into control tokens wherever it finds it. A user who writes one into a message could end their turn and begin
the system's. So what looks like a special token in a message goes through the template as a stand-in S, a private-use
character that is in none of the messages:

    message     hello <|im_end|>              rendered   <|im_start|>user hello S<|im_end|>
    stand-ins   {"<|im_end|>": S}             encoded    [1]  plain("user hello <|im_end|>")  [2]

Then the text is cut at the special tokens in it, which are now all the template's own, and the parts between them are
encoded as plain text. Messages without special tokens, nearly all, are encoded by the tokenizer as usual.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from twofour.serve.edge.errors import invalid
from twofour.serve.openai.prompts.encoding import Encoder, TooManyTokens

PRIVATE = range(0xF0000, 0x110000)  # planes 15 and 16: texts do not use them
SPARE = 64  # private characters that the messages may have; each is looked for in all of them
PlainMessages = list[dict[str, str]]
StandIns = dict[str, str]


class UserText:
    """The special tokens of one tokenizer, and how they are kept out of messages.

    They are looked for one by one: a search for text is quick, and between two searches other threads can run.
    """

    def __init__(self, backend: Any) -> None:
        known = backend.get_added_tokens_decoder()
        self._ids = {token.content: id for id, token in known.items() if token.special}
        # Longest first: where one is part of another, the longer one counts.
        self._special = sorted(
            (token for token in known.values() if token.special), key=lambda token: -len(token.content)
        )
        self._tokens = {token.content: token for token in self._special}
        self._own = any_of([re.escape(token.content) for token in self._special])
        # A tokenizer that looks for special tokens in normalized text may find some that are not seen in the messages.
        self.is_blind = backend.normalizer is not None and any(token.normalized for token in self._special)
        plain = Tokenizer.from_str(backend.to_str())
        plain.encode_special_tokens = True
        self._plain = Encoder(plain)

    def stand_ins(self, messages: PlainMessages) -> StandIns:
        """One for each special token that is written in a message."""
        text = "\n".join(message["content"] for message in messages)
        written = [token.content for token in self._special if token.content in text]
        tried = islice(map(chr, PRIVATE), len(written) + SPARE) if written else ()
        spare = [character for character in tried if character not in text]
        if len(spare) < len(written):
            raise invalid("special tokens beside private-use characters; leave one of them out", "messages")
        return dict(zip(written, spare, strict=False))

    def disguise(self, messages: PlainMessages, stand_ins: StandIns) -> PlainMessages:
        """Put stand-ins for special tokens, the longest first, so that no part of one is taken for another."""

        def disguised(text: str) -> str:
            for token, stand_in in stand_ins.items():
                text = text.replace(token, stand_in)
            return text

        return [{**message, "content": disguised(message["content"])} for message in messages]

    def encode(self, rendered: str, stand_ins: StandIns, limit: int) -> list[int]:
        """The ids of a rendered template: its own special tokens, all the rest as plain text."""
        back = str.maketrans({stand_in: token for token, stand_in in stand_ins.items()})
        ids: list[int] = []
        for part in self._parts(rendered):
            own = self._ids.get(part)
            ids += self._plain.encode(part.translate(back), limit) if own is None else [own]
            if len(ids) > limit:
                raise TooManyTokens(len(ids))
        return ids

    def _parts(self, rendered: str) -> Iterator[str]:
        """Special tokens and the text between them, without the white space that belongs to the tokens."""
        end, strips = 0, False
        for match in self._own.finditer(rendered):
            between, token = rendered[end : match.start()], self._tokens[match[0]]
            between = between.lstrip() if strips else between
            yield from filter(None, (between.rstrip() if token.lstrip else between, match[0]))
            end, strips = match.end(), token.rstrip
        rest = rendered[end:]
        yield from filter(None, (rest.lstrip() if strips else rest,))


def any_of(patterns: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or "(?!)")
