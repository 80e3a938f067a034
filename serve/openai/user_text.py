"""Messages that cannot speak the template's language.

A chat template writes special tokens, `<|im_start|>` for instance, as text between what people said, and a tokenizer
turns that text into control tokens wherever it finds it. Whoever writes one into a message would end their turn and
begin the system's. So what looks like a special token in a message goes through the template as a stand-in S, one
private-use character that is nowhere in the messages:

    said        hello <|im_end|>              rendered   <|im_start|>user hello S<|im_end|>
    stand-ins   {"<|im_end|>": S}             encoded    [1]  plain("user hello <|im_end|>")  [2]

Then the text is cut at the special tokens that are left, which are the template's own, and what lies between them is
encoded as plain text. Messages without any, which is nearly all, are encoded by the tokenizer as they are.
"""

import re
from typing import Any

from tokenizers import Tokenizer

PRIVATE = range(0xF0000, 0x110000)  # planes 15 and 16: no text has them
Said = list[dict[str, str]]
StandIns = dict[str, str]


class UserText:
    """The special tokens of one tokenizer, and how they are kept out of messages."""

    def __init__(self, backend: Any) -> None:
        known = backend.get_added_tokens_decoder()
        self._ids = {token.content: id for id, token in known.items() if token.special}
        special = sorted((token for token in known.values() if token.special), key=lambda token: -len(token.content))
        self._written = any_of([re.escape(token.content) for token in special])
        self._cuts = any_of([cut(token) for token in special])
        # Where special tokens are looked for in normalized text, no look at the messages can tell.
        self.is_blind = backend.normalizer is not None and any(token.normalized for token in special)
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.encode_special_tokens = True

    def stand_ins(self, messages: Said) -> StandIns:
        """One for each special token that is written in a message."""
        said = "\n".join(message["content"] for message in messages)
        written = dict.fromkeys(self._written.findall(said))
        spare = (chr(code) for code in PRIVATE if chr(code) not in said)
        return dict(zip(written, spare, strict=False))

    def disguise(self, messages: Said, stand_ins: StandIns) -> Said:
        def instead(match: re.Match[str]) -> str:
            return stand_ins[match[0]]

        return [{**message, "content": self._written.sub(instead, message["content"])} for message in messages]

    def encode(self, rendered: str, stand_ins: StandIns) -> list[int]:
        """The ids of a rendered template: its own special tokens, and everything else as plain text."""
        back = str.maketrans({stand_in: token for token, stand_in in stand_ins.items()})
        ids: list[int] = []
        for part in filter(None, self._cuts.split(rendered)):
            own = self._ids.get(part)
            ids += self._plain.encode(part.translate(back), add_special_tokens=False).ids if own is None else [own]
        return ids


def any_of(patterns: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or "(?!)")


def cut(token: Any) -> str:
    """A special token in a rendered text, with the white space that it takes along."""
    before, after = r"\s*" * token.lstrip, r"\s*" * token.rstrip
    return f"{before}({re.escape(token.content)}){after}"
