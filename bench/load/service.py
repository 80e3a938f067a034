"""The server under test: where it is, which of its models is asked, and in which form."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Service:
    """plain: it knows OpenAI's API only, see client.jobs. timeout_s: a request of which so long nothing comes ends."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    plain: bool = False
    timeout_s: float = 600.0
