"""One server as it was measured, which is all that a plan knows of it: an option that can be bought."""

from collections.abc import Sequence
from dataclasses import dataclass

from twofour.bench.capacity.step_model import StepModel


@dataclass(frozen=True)
class EngineLimits:
    """How an engine batches."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_size: int
    context_length: int
    piece: int = 0  # as of serve's scheduler: tokens that are computed together; 0: all of a step
    prefix_cache: bool = True
    shares_output: bool = True  # blocks with sampled tokens are found again, too
    policy: str = "twofour"  # or "vllm": whose scheduler it is


@dataclass(frozen=True)
class Around:
    """What passes beside the steps, in seconds."""

    first_s: float  # from the sending of a request to the engine, and from its first token to the client
    between_s: float  # from the end of a step to the beginning of the next, while there is work


@dataclass(frozen=True)
class Replica:
    """What the simulator needs to know of a server."""

    limits: EngineLimits
    steps: StepModel
    around: Around
    residuals: Sequence[float] = (1.0,)  # measured over predicted seconds of a step, as quantiles: equally likely
