from types import SimpleNamespace

import pytest

from twofour.prune.errors import InputError, ModelError
from twofour.serve.engine.assembly.capacity import context_limit, decide
from twofour.serve.engine.assembly.memory import Memory
from twofour.serve.engine.types import EngineConfig

MIB = 1 << 20


def config(**options: int | None) -> EngineConfig:
    return EngineConfig("m", **{"max_num_seqs": 4, "block_size": 16} | options)  # type: ignore[arg-type]


def beside(mib: int) -> Memory:
    return Memory(mib * MIB, mib * MIB)


@pytest.mark.parametrize(
    ("options", "free_mib", "context", "kv_tokens"),
    [
        ({}, 1000, 1000, 4000),  # four contexts, a whole number of blocks
        ({"max_model_len": 100}, 1000, 100, 400),
        ({"max_num_seqs": 1, "max_model_len": 100}, 1000, 100, 112),
        ({}, 16, 1000, 2048),  # an eighth of the memory holds 2048 tokens of 1 KiB
        ({}, 4, 1000, 1008),  # an eighth is less than one context: one context
        ({}, 1, 512, 512),  # one context is more than half: what fits into half
        ({"kv_tokens": 700}, 1000, 704, 704),
    ],
)
def test_what_fits(options: dict[str, int], free_mib: int, context: int, kv_tokens: int) -> None:
    room = decide(config(**options), limit=1000, bytes_per_token=1024, memory=beside(free_mib), share=0.125)
    assert room.context_length == context
    assert room.kv_tokens == kv_tokens
    assert bool(room.notes) == (context < 1000 and "max_model_len" not in options)


@pytest.mark.parametrize(
    ("options", "free_mib", "why"),
    [
        ({"max_model_len": 1001}, 1000, "over the model's own 1000"),
        ({"max_model_len": 900}, 1, "900 tokens does not fit: the cache holds 512 .* lower max_model_len"),
        ({"kv_tokens": 64, "max_model_len": 100}, 1000, "holds 64"),
        ({}, 0, "holds 0"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, int], free_mib: int, why: str) -> None:
    with pytest.raises(InputError, match=why):
        decide(config(**options), limit=1000, bytes_per_token=1024, memory=beside(free_mib), share=0.125)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        (None, 4096),
        ({"rope_type": "llama3", "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "longrope", "original_max_position_embeddings": 512}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
    ],
)
def test_where_long_neighbours_would_change_a_text_the_context_ends(rope: dict[str, object] | None, limit: int) -> None:
    assert context_limit(SimpleNamespace(max_position_embeddings=4096, rope_parameters=rope)) == limit


def test_a_model_without_a_length_is_refused() -> None:
    with pytest.raises(ModelError, match="max_position_embeddings"):
        context_limit(SimpleNamespace())


def test_what_is_free_at_the_moment_decides_only_whether_the_cache_can_be_had() -> None:
    needed = 4000 * 1024
    for free in (needed, needed + 1, 1 << 40):
        assert decide(config(), 1000, 1024, Memory(1000 * MIB, free), 0.125).kv_tokens == 4000
    for options in ({}, {"kv_tokens": 4000}):
        with pytest.raises(
            InputError, match=f"4000 tokens takes {needed} bytes, and {needed - 1} are free; free memory"
        ):
            decide(config(**options), 1000, 1024, Memory(1000 * MIB, needed - 1), 0.125)
