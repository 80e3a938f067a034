"""What the middleware and the plugin of one API server both know: how it is set up, and how far its life is."""

from dataclasses import dataclass, field
from functools import cache

from prometheus_client import CollectorRegistry

from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.vllm_edge import settings
from twofour.serve.vllm_edge.engine_state import Heartbeat
from twofour.serve.vllm_edge.settings import Settings


@dataclass
class Shared:
    settings: Settings
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    heartbeat: Heartbeat | None = None  # of an engine that is loaded


@cache
def shared() -> Shared:
    return Shared(settings.read())
