"""One streamed answer of the mock: its events as bytes, and when each of its chunks was written.

The bytes are formatted and not dumped as JSON, as the mock must be faster than the client that it judges.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from twofour.bench.proof.mock import Delta, Script, Served

_CHAT: dict[Delta, bytes] = {
    "content": b'"content":"%s"',
    "reasoning": b'"reasoning":"%s"',
    "reasoning_content": b'"reasoning_content":"%s"',
    "tool_calls": b'"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]',
}
# By whether it is a chat; AIPerf reads no event without it.
_KINDS = {False: b'"object":"text_completion",', True: b'"object":"chat.completion.chunk",'}
_ENDS = {None: b"null", "length": b'"length"', "stop": b'"stop"'}


class Answer:
    """`cut`: the script says that the connection breaks here."""

    def __init__(self, script: Script, served: Served, write: Callable[[bytes], None]) -> None:
        self._script = script
        self._served = served
        self._write = write
        self._pending = b""
        self._fresh = 0  # tokens of the chunk that is being made
        self._asked: int = served.body.get("max_tokens") or served.body["max_completion_tokens"]
        self.words = served.prompt.split()
        self.prompt_tokens = len(self.words)
        self.total = min(self._asked, script.stop_after or self._asked)
        self._kind = _KINDS[served.chat]
        self.sent = 0
        self.cut = False

    @property
    def chunks(self) -> int:
        return len(self._served.written)

    @property
    def complete(self) -> bool:
        return self.sent >= self.total or self.cut

    def next_chunk(self) -> int:
        """How many tokens the next chunk has."""
        return min(self._script.tokens_per_chunk, self.total - self.sent)

    def begin(self) -> None:
        if self._script.role_chunk:
            self._write(self._event(self._choice(b"", role=True), 0))

    def token(self) -> None:
        """A token is there: the chunk that it completes is sent."""
        if self.chunks == self._script.reset_after:
            self.cut = True
            return
        self._fresh += 1
        if self._fresh < self.next_chunk():
            return
        fresh, self._fresh = self._fresh, 0
        self.sent += fresh
        self._pending += self._event(self._choice(b" word" * fresh), self.sent)
        self._served.written.append((perf_counter(), fresh))
        if self.chunks % self._script.chunks_per_write == 0:
            self._flush()

    def end(self) -> None:
        """The usage that follows the last token, where there is one, and the end of the stream."""
        if self._script.usage != "never":
            self._pending += chunked(b'data: {%b"choices":[],%s}\n\n' % (self._kind, self._usage(self.sent)))
        self._pending += chunked(b"data: [DONE]\n\n") + chunked(b"")
        self._flush()

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        text = " word" * self.sent
        said = {"message": {"role": "assistant", "content": text}} if self._served.chat else {"text": text}
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.sent}
        usage["total_tokens"] = self.prompt_tokens + self.sent
        kind = "chat.completion" if self._served.chat else "text_completion"
        return {"object": kind, "choices": [{"index": 0, **said, "finish_reason": self._reason()}], "usage": usage}

    def _flush(self) -> None:
        if self._pending:
            self._write(self._pending)
            self._pending = b""

    def _reason(self) -> str | None:
        if self.sent < self.total:
            return None
        return "length" if self.total == self._asked else "stop"

    def _choice(self, text: bytes, role: bool = False) -> bytes:
        end = _ENDS[self._reason()]
        if not self._served.chat:
            return b'{"index":0,"text":"%s","finish_reason":%s}' % (text, end)
        said = b'"role":"assistant","content":""' if role else _CHAT[self._delta()] % text
        return b'{"index":0,"delta":{%s},"finish_reason":%s}' % (said, end)

    def _delta(self) -> Delta:
        return self._script.deltas[min(self.chunks, len(self._script.deltas) - 1)]

    def _event(self, choice: bytes, so_far: int) -> bytes:
        usage = b"," + self._usage(so_far) if self._script.usage == "every" else b""
        return chunked(b'data: {%b"choices":[%s]%s}\n\n' % (self._kind, choice, usage))

    def _usage(self, so_far: int) -> bytes:
        prompt, cached = self.prompt_tokens, self._script.cached_tokens
        details = b"" if cached is None else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached
        counts = b'"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d' % (prompt, so_far, prompt + so_far)
        return b'"usage":{%s%s}' % (counts, details)


def chunked(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)
