"""One sequence as its client sees it: pieces go in, text that may be shown comes out."""

from collections.abc import Sequence
from dataclasses import dataclass

from twofour.serve.engine.types import Finish, Logprob, Piece, Prompt
from twofour.serve.openai.answers.detokenize import Decode, Detokenizer, Spell
from twofour.serve.openai.answers.stop_strings import StopMatcher

PromptLogprobs = tuple[Logprob | None, ...]


@dataclass(frozen=True)
class Delta:
    """What is new of one choice since the last one."""

    index: int
    text: str
    logprobs: tuple[Logprob, ...] = ()
    offsets: tuple[int, ...] = ()  # where their tokens begin in the choice's text, in characters
    prompt_logprobs: PromptLogprobs = ()
    finish: Finish | None = None


class Choice:
    """It ends at a stop string, or when the engine says so. Logprobs are given together with their text."""

    def __init__(self, index: int, prompt: Prompt, stops: Sequence[str], decode: Decode, spell: Spell) -> None:
        self.index, self.prompt = index, prompt
        self.finish: Finish | None = None
        self.generated_tokens = self.cached_tokens = 0
        self._detokenizer = Detokenizer(decode, spell, prompt.tokens)
        self._stops = StopMatcher(stops)
        self._text: list[str] = []
        self._length = 0  # of the text in characters, with those held back
        self._logprobs: list[Logprob] = []
        self._offsets: list[int] = []
        self._prompt_logprobs: PromptLogprobs = ()

    def accept(self, piece: Piece) -> None:
        self.cached_tokens += piece.cached_tokens
        self._prompt_logprobs += piece.prompt_logprobs
        for position, token in enumerate(piece.tokens):
            if self.finish is not None:
                return
            self.generated_tokens += 1
            self._note(piece.logprobs[position : position + 1])
            # The token that ended the text is not part of it.
            ends = piece.stopped_by is not None and position == len(piece.tokens) - 1
            self._show("" if ends else self._detokenizer.step(token))
        if piece.finish is not None and self.finish is None:
            self._end(piece.finish)

    def take(self) -> Delta | None:
        """What may be shown and has not been taken yet; None if there is nothing."""
        text = "".join(self._text)
        if not text and self.finish is None:
            return None
        delta = Delta(self.index, text, tuple(self._logprobs), tuple(self._offsets), self._prompt_logprobs, self.finish)
        self._text, self._logprobs, self._offsets, self._prompt_logprobs = [], [], [], ()
        return delta

    def _note(self, logprobs: Sequence[Logprob]) -> None:
        self._logprobs += logprobs
        self._offsets += [self._length] * len(logprobs)

    def _show(self, text: str) -> None:
        armed = self.generated_tokens >= self.prompt.sampling.min_tokens
        self._length += len(text)
        shown, stopped = self._stops.feed(text, armed)
        self._text.append(shown)
        if stopped:
            self.finish = Finish.STOP

    def _end(self, finish: Finish) -> None:
        self._show(self._detokenizer.flush())
        if self.finish is None:
            self._text.append(self._stops.flush())
            self.finish = finish
