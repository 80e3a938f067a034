"""The server under test: where it is, which of its models is asked, and in which form."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from twofour.bench.load import wire
from twofour.bench.load.access import OPEN, Access

Api = Literal["completions", "chat"]
LengthField = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True)
class Service:
    """plain: it knows OpenAI's API only, see client.jobs. timeout_s: a request of which so long nothing comes ends.

    length_field: what it calls the most tokens of an answer. body: fields of every request, over those that the client
    sets; None leaves one away.
    """

    url: str
    model: str
    access: Access = OPEN
    plain: bool = False
    timeout_s: float = 600.0
    api: Api = "completions"
    length_field: LengthField = "max_tokens"
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Of its API, after /v1."""
        return "/completions" if self.api == "completions" else "/chat/completions"

    def described(self) -> dict[str, Any]:
        """Plain data for documents, without what opens it; tls: which certificates were trusted, None: plain HTTP."""
        return {
            "url": wire.shown(self.url),
            "model": self.model,
            "api": self.api,
            "plain": self.plain,
            "length_field": self.length_field,
            "body": dict(self.body),
            "headers": sorted(self.access.headers),
            "tls": self.access.trust() if wire.target(self.url).tls else None,
            "timeout_s": self.timeout_s,
        }
