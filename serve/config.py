"""How the endpoint behaves; what the engine is started with is `engine.types.EngineConfig`."""

from dataclasses import dataclass, field

from twofour.serve.edge.harden import EdgeConfig


@dataclass(frozen=True)
class ServeConfig:
    served_model_name: str
    edge: EdgeConfig = field(default_factory=EdgeConfig)
    max_queue: int = 256  # sequences under way, waiting or running
    max_queue_tokens: int = 4_000_000  # prompt tokens under way
    deadline_s: float = 600.0  # for one request; OpenAI's clients wait as long
    keep_alive_s: float | None = 15.0  # of silence in a stream before a comment is sent; proxies give up after 30 or 60
    stream_stall_s: float = 30.0  # a client that reads nothing for this long is cut off
    drain_s: float = 30.0  # for requests under way after SIGTERM
    pre_drain_s: float = 0.0  # before that: new requests are still taken, while /ready says no
    ui: bool = True  # the chat page at /
