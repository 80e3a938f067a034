"""What the parent tells the edge inside of vLLM's server, by the environment. Of keys it has only the digests."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.limits import Limits

VARIABLE = "TWOFOUR_VLLM_EDGE"


@dataclass(frozen=True)
class Settings:
    served_model_name: str
    digests: tuple[str, ...] = ()  # of API keys, in hexadecimal
    open_paths: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    cors_origins: tuple[str, ...] = ()
    deadline_s: float = 600.0
    drain_s: float = 30.0
    pre_drain_s: float = 0.0
    otlp_endpoint: str | None = None
    ui: bool = True

    @property
    def edge(self) -> EdgeConfig:
        return EdgeConfig(
            api_keys=tuple(map(bytes.fromhex, self.digests)),
            open_paths=frozenset(self.open_paths),
            limits=Limits(self.requests_per_minute),
            cors_origins=tuple(self.cors_origins),
        )

    def as_variable(self) -> str:
        return json.dumps(asdict(self))


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    return Settings(**json.loads(environment[VARIABLE]))
