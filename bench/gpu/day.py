"""What is measured, in which sizes, and by when each stage is over, in seconds from the start of the session."""

from collections.abc import Mapping
from dataclasses import dataclass

from twofour.bench.targets.shapes import SHAPES, DecoderShape

# In this order: what tells most comes before what takes longest. `tests` are those of tests/gpu.
STAGES: Mapping[str, float] = {
    "device": 15,
    "compiling": 40,
    "tests": 120,
    "products": 240,
    "sweep": 280,
    "steps": 420,
    "graphs": 460,
    "checks": 490,
}
GRACE_S = 8.0  # after its end a stage that has not stopped by itself is killed


@dataclass(frozen=True)
class Day:
    """The sizes of one session."""

    device: str
    forms: Mapping[str, str]  # of the model that is served, and the kernels that multiply; "": it stays dense
    shapes: Mapping[str, DecoderShape]  # the first is the one that is served
    tokens: tuple[int, ...]  # of one product
    rounds: int
    ring_bytes: int | None  # of the copies of a weight; None: more than twice the cache
    target_s: float  # of one contender's turn
    sweep_tokens: tuple[int, ...]
    batches: tuple[int, ...]  # sequences that decode
    contexts: tuple[int, ...]  # tokens that each has in the cache
    prompts: tuple[int, ...]
    budgets: tuple[int, ...]  # prompt tokens of one step
    steps: int  # timed, of each kind
    compared_layers: int  # of the model whose captured steps are compared with eager ones

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def served(self) -> DecoderShape:
        return next(iter(self.shapes.values()))


FULL = Day(
    device="cuda",
    forms={"dense": "", "2:4 triton": "triton", "2:4 auto": "auto"},
    shapes={name: SHAPES[name] for name in ("llama-3.1-8b", "llama-3.2-1b")},
    tokens=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    rounds=5,
    ring_bytes=None,
    target_s=0.004,
    sweep_tokens=(1, 16, 64),
    batches=(1, 8, 32, 128),
    contexts=(128, 1024, 8192),
    prompts=(512, 2048, 8192),
    budgets=(512, 2048),
    steps=12,
    compared_layers=4,
)

REHEARSAL = Day(
    device="cpu",
    forms={"dense": "", "2:4 auto": "auto"},
    shapes={"rehearsal": DecoderShape(64, 128, 2, 4, 2, 320, 10_000.0, tied=False)},
    tokens=(1, 16),
    rounds=2,
    ring_bytes=1,
    target_s=0.0,
    sweep_tokens=(1,),
    batches=(1, 2),
    contexts=(20, 40),
    prompts=(40,),
    budgets=(16, 64),
    steps=2,
    compared_layers=1,
)


def matrices(shape: DecoderShape) -> dict[str, tuple[int, int]]:
    """The weights (out, in) of one block by name, and what its q, k, v and its gate, up would be as one."""
    kv = shape.kv_heads * shape.head_dim
    return {
        "q, o": (shape.hidden, shape.hidden),
        "k, v": (kv, shape.hidden),
        "gate, up": (shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "qkv as one": (shape.hidden + 2 * kv, shape.hidden),
        "gate and up as one": (2 * shape.intermediate, shape.hidden),
    }
