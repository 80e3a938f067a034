"""One request and its answer, counted while they pass."""

import time
from dataclasses import dataclass, field

from starlette.types import Message, Scope, Send

from twofour.serve.edge.ids import header, request_id

CLIENT_LEFT = 499  # as nginx counts a request whose client left before the answer


@dataclass
class Exchange:
    scope: Scope
    send: Send
    began_at: float = field(default_factory=time.perf_counter)
    status: int = CLIENT_LEFT
    sent_bytes: int = 0
    started: bool = False

    async def forward(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            parent = self.scope["state"]["traceparent"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", request_id(self.scope).encode()),
                *([(b"traceparent", parent.encode())] if parent else []),
            ]
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self.send(message)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began_at

    @property
    def received_bytes(self) -> int:
        return int(header(self.scope, b"content-length") or 0)

    @property
    def rejection(self) -> str | None:
        reason: str | None = self.scope["state"].get("rejection")
        return reason
