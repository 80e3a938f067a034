"""The shapes of well-known decoders: what `bench kernels` multiplies, and what random models are made of."""

from dataclasses import dataclass

from twofour.prune.errors import InputError


@dataclass(frozen=True)
class DecoderShape:
    """A Llama-like decoder. Sizes are those of the published config.json."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    rope_theta: float
    tied: bool  # lm_head is the embedding

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def linears(self) -> dict[tuple[int, int], int]:
        """How many decoder linears have the shape (out, in); lm_head is none of them."""
        kv = self.kv_heads * self.head_dim
        found: dict[tuple[int, int], int] = {}
        for shape, count in (
            ((self.hidden, self.hidden), 2),  # q, o
            ((kv, self.hidden), 2),  # k, v
            ((self.intermediate, self.hidden), 2),  # gate, up
            ((self.hidden, self.intermediate), 1),  # down
        ):
            found[shape] = found.get(shape, 0) + count * self.layers
        return found


SHAPES = {
    "smollm2-135m": DecoderShape(576, 1536, 30, 9, 3, 49152, 100_000.0, tied=True),
    "llama-3.2-1b": DecoderShape(2048, 8192, 16, 32, 8, 128256, 500_000.0, tied=True),
    "llama-3.1-8b": DecoderShape(4096, 14336, 32, 32, 8, 128256, 500_000.0, tied=False),
}


def named(name: str) -> DecoderShape:
    """Find a shape. Raises InputError where there is none of that name."""
    if name not in SHAPES:
        raise InputError(f"no shape is named {name!r}; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
