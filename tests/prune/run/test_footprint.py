"""What a run takes: sizes by hand, and hidden states on disk, which change nothing but the memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pruned_families import tiny

from twofour.cli import main
from twofour.prune import PruneConfig, prune
from twofour.prune.commands.prune import memory_size
from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import digests
from twofour.prune.model import anatomy, batches
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.progress import silent
from twofour.prune.run import footprint, prepare
from twofour.prune.run import prune as run
from twofour.prune.run.shortage import shortage_named
from twofour.prune.text.plain import PlainWriter

MODEL_BYTES = 2 * (320 * 64 + 5 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96))  # of the tiny model, bfloat16


@pytest.fixture(scope="module")
def parts(tiny_model_folder: Path) -> Anatomy:
    return anatomy.dissect(anatomy.load(tiny_model_folder))


def config(**asked: Any) -> PruneConfig:
    return PruneConfig(**{"preset": "fast", "samples": 400, "length": 1024, "calibration": "a.txt"} | asked)


def test_the_model_and_its_states(parts: Anatomy) -> None:
    assert footprint.model_bytes(parts) == MODEL_BYTES
    assert footprint.states_bytes(parts, config()) == 400 * 1024 * 64 * 2
    assert footprint.states_bytes(parts, config(preset="balanced")) == 2 * 400 * 1024 * 64 * 2  # the dense ones, too


def test_memory_is_that_of_what_is_held_at_a_time(parts: Anatomy) -> None:
    states = 400 * 1024 * 64 * 2
    memory = footprint.memory_bytes(parts, config())
    assert memory - footprint.memory_bytes(parts, config(), on_disk=True) == states
    assert memory > footprint.PROCESS_BYTES + MODEL_BYTES + states
    assert footprint.memory_bytes(parts, config(preset="best")) - memory >= states
    cache = (1 << 15) * 2 * 2 * 32 * 2  # so many tokens, keys and values, 2 blocks, 2 heads of 16
    least = footprint.PROCESS_BYTES + MODEL_BYTES + cache
    assert footprint.memory_bytes(parts, config(calibration="self"), on_disk=True) >= least
    assert footprint.memory_bytes(parts, config(method="magnitude", preset=None)) < memory


def test_linears_that_share_an_input_are_solved_as_one(parts: Anatomy) -> None:
    assert footprint._largest_together(parts) == 2 * 96 * 64  # gate and up, or all of attention
    wide = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=64, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, vocab_size=32
        )
    )
    assert footprint._largest_together(anatomy.dissect(wide)) == 2 * 512 * 64


def test_every_expert_has_hessians_of_its_own() -> None:
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    few, many = (
        transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**sizes, head_dim=16, num_key_value_heads=2, num_experts=count, vocab_size=64)
        )
        for count in (8, 24)
    )
    few_parts, many_parts = anatomy.dissect(few), anatomy.dissect(many)
    grown = footprint.memory_bytes(many_parts, config()) - footprint.memory_bytes(few_parts, config())
    bigger = footprint.model_bytes(many_parts) - footprint.model_bytes(few_parts)
    assert grown - bigger == (24 - 8) * 4 * (32**2 + 16**2)


def test_the_largest_block_counts_wherever_it_is() -> None:
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    mixed, same = (
        anatomy.dissect(
            transformers.Qwen3MoeForCausalLM(
                transformers.Qwen3MoeConfig(
                    **(sizes | {"num_hidden_layers": 2, "head_dim": 16, "num_key_value_heads": 2}),
                    **{"num_experts": 24, "vocab_size": 64, "mlp_only_layers": dense},
                )
            )
        )
        for dense in ([0], [])
    )
    saved = footprint.model_bytes(same) - footprint.model_bytes(mixed)
    for asked in (config(), config(preset="best", train="blocks")):
        assert footprint.memory_bytes(same, asked) - footprint.memory_bytes(mixed, asked) == saved


def test_disk_holds_the_result_the_blocks_and_the_states(parts: Anatomy) -> None:
    pruned, states = MODEL_BYTES - 2 * (320 * 64 + 5 * 64), 400 * 1024 * 64 * 2
    asked = config(format="dense")
    assert footprint.disk_bytes(parts, asked) == MODEL_BYTES + pruned + 2 * states
    assert footprint.disk_bytes(parts, asked, on_disk=True) == MODEL_BYTES + pruned + 3 * states
    kept = pruned // 4  # of 2 bytes, every second
    distilled = footprint.disk_bytes(parts, config(format="dense", preset="best"))
    assert distilled == MODEL_BYTES + pruned + 2 * 2 * states + 2 * kept * (4 + 4 + 4 + 2)
    lean = footprint.disk_bytes(parts, config(format="dense", preset="best", lean=True))
    assert 2 * kept * (2 + 2 + 2 + 2) < lean - MODEL_BYTES - pruned - 4 * states < 2 * kept * 8.5


def test_a_head_in_int8_is_beside_the_embeddings_or_in_place_of_its_own(
    parts: Anatomy, tiny_float32_folder: Path
) -> None:
    int8, rounded = 320 * (64 + 4), config(lm_head="int8")
    assert footprint.memory_bytes(parts, rounded) - footprint.memory_bytes(parts, config()) == int8
    assert footprint.disk_bytes(parts, rounded) - footprint.disk_bytes(parts, config()) == int8
    own = anatomy.dissect(anatomy.load(tiny_float32_folder))
    assert footprint.disk_bytes(own, rounded) - footprint.disk_bytes(own, config()) == int8 - 4 * 320 * 64


def test_states_go_to_disk_only_where_the_limit_asks_for_it(parts: Anatomy) -> None:
    needed, least = (footprint.memory_bytes(parts, config(), on_disk) for on_disk in (False, True))
    for limit, on_disk in ((None, False), (needed, False), (needed - 1, True), (least, True)):
        assert footprint.states_on_disk(parts, config(memory_limit_bytes=limit)) is on_disk
    with pytest.raises(
        InputError, match=r"needs 0\.\d\d GiB of memory even with hidden states on disk, 0\.00 GiB of them"
    ):
        footprint.states_on_disk(parts, config(memory_limit_bytes=least - 1))


def test_without_a_limit_the_memory_of_the_host_decides(parts: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    needed, least = (footprint.memory_bytes(parts, config(), on_disk) for on_disk in (False, True))
    for limit, on_disk in ((needed, False), (needed - 1, True), (least - 1, True)):  # it may be enough all the same
        monkeypatch.setattr(footprint, "host_bytes", lambda limit=limit: limit)
        assert footprint.states_on_disk(parts, config()) is on_disk


def qwen3(hidden: int, inner: int, blocks: int, heads: int, tied: bool = False) -> Anatomy:
    """A model of such a size without weights, in bfloat16."""
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": blocks}
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                **sizes,
                num_attention_heads=heads,
                num_key_value_heads=8,
                head_dim=128,
                vocab_size=151936,
                tie_word_embeddings=tied,
            )
        )
    return anatomy.dissect(model.to(torch.bfloat16))


def published(kind: str) -> Anatomy:
    """A model of the config that its makers have published, without weights, in bfloat16."""
    if kind == "Qwen/Qwen3-4B":
        return qwen3(2560, 9728, 36, 32, tied=True)
    assert kind == "meta-llama/Llama-3.1-8B"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                vocab_size=128256,
                tie_word_embeddings=False,
            )
        )
    return anatomy.dissect(model.to(torch.bfloat16))


@pytest.mark.parametrize("preset", ["balanced", "best"])
@pytest.mark.parametrize(
    ("kind", "card", "lean", "most"),
    [
        ("Qwen/Qwen3-4B", 23.5, True, 23),
        ("Qwen/Qwen3-4B", 47.5, False, 46),
        ("meta-llama/Llama-3.1-8B", 79, False, 76),
        ("meta-llama/Llama-3.1-8B", 47.5, True, 46),
    ],
)
def test_what_whole_models_take_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, kind: str, card: float, lean: bool, most: int, preset: str
) -> None:
    """Of cards of 24, 48 and 80 GB, and what is free of them."""
    parts = published(kind)
    monkeypatch.setattr(footprint, "device_bytes", lambda device: round(card * 2**30))
    monkeypatch.setattr(footprint, "host_bytes", lambda: 256 << 30)
    chosen, fallbacks = footprint.affordable(parts, config(preset=preset, length=512, samples=64, device="cuda"))
    assert (chosen.train, chosen.lean, chosen.recompute) == ("auto", lean, False) and len(fallbacks) == lean
    peak = footprint.device_memory(parts, chosen)
    assert peak.stage == "training the model" and peak.size < most * 2**30
    weights = sum(linear.weight.numel() for linear in parts.linears.values())
    of_a_weight = peak.terms["masters, moments and places"] / weights
    assert of_a_weight == (2.15625 if lean else 8)


def test_the_slope_of_float16_logits_is_float32() -> None:
    halves = [anatomy.dissect(tiny("llama").to(dtype)) for dtype in (torch.float16, torch.bfloat16)]
    asked = config(preset="best", samples=4, length=32)
    more, less = (footprint.memory_bytes(parts, asked, on_disk=True) for parts in halves)
    assert more - less == 64 * 101 * (4 - 2)  # of the tokens of a step, 101 in the vocabulary


def test_text_is_written_where_the_whole_model_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 23 << 30
    monkeypatch.setattr(footprint, "device_bytes", lambda device: free)
    asked = config(calibration=("a.txt", "self"), device="cuda", length=512)
    small, large = qwen3(4096, 12288, 36, 32), qwen3(5120, 17408, 40, 40)  # of 8B and of 14B
    assert 14 << 30 < footprint.model_bytes(small) < free < footprint.model_bytes(large)
    assert [footprint.writer(parts, asked) for parts in (small, large)] == ["cuda", "cpu"]
    assert footprint.writer(large, replace(asked, calibration="a.txt")) == "cuda"  # nothing is written
    assert footprint.writer(large, replace(asked, device="cpu")) == "cpu"
    written = sum(footprint._sampling(large, asked).values())
    free = footprint.model_bytes(large) + written
    assert footprint.writer(large, asked) == "cuda"
    free -= 1
    assert footprint.writer(large, asked) == "cpu"
    in_host = footprint.memory_bytes(large, replace(asked, samples=2), on_disk=True)
    few = sum(footprint._sampling(large, replace(asked, samples=2)).values())
    assert in_host >= footprint.model_bytes(large) + few


def test_text_that_is_written_elsewhere_is_said_to_be(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that holds blocks, and no whole model: here the second one, which is called meta, is never used."""
    monkeypatch.setattr(prepare, "require_device", lambda device: None)
    monkeypatch.setattr(footprint, "device_bytes", lambda device: 0)
    moved: list[str] = []

    def new_writer(model: Any) -> PlainWriter:
        moved.append(model.device.type)
        return PlainWriter(model)

    asked = PruneConfig(preset="fast", samples=4, length=32, device="meta")
    ready = prepare.prepare(tiny_model_folder, asked)
    assert run.calibration(ready, new_writer, silent).ids.shape == (4, 32) and moved == ["cpu"]
    assert ready.fallbacks == ["text sampled on the CPU: the whole model, which writes it, had no room on meta"]
    plans = prepare.writer_notes(replace(asked, calibration="a.txt"), "cpu")
    assert plans == prepare.writer_notes(replace(asked, device="cpu"), "cpu") == []


def test_the_whole_is_trained_only_where_a_gpu_has_room_for_it(parts: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(preset="best", device="cuda")
    free = 0
    monkeypatch.setattr(footprint, "device_bytes", lambda device: free)
    (fallback,) = footprint.affordable(parts, asked)[1]
    assert "of cuda, and 0.00 GiB could be had" in fallback
    free = 1 << 40
    assert footprint.affordable(parts, asked) == (asked, [])


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_states_on_disk_change_no_bit(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    small: dict[str, Any] = {"preset": preset, "samples": 6, "length": 32}
    prune(tiny_model_folder, tmp_path / "memory", PruneConfig(**small))
    seen = set()
    real = batches.Batch._put

    def watch(batch: batches.Batch, name: str, states: Any) -> None:
        real(batch, name, states)
        seen.add((name, len(batch._states), len(list((tmp_path / ".disk.unfinished").glob(f"{name}-from-*")))))

    monkeypatch.setattr(batches.Batch, "_put", watch)
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    limit = footprint.memory_bytes(parts, PruneConfig(**small)) - 1
    prune(tiny_model_folder, tmp_path / "disk", PruneConfig(**small, memory_limit_bytes=limit))
    assert digests(tmp_path / "disk") == digests(tmp_path / "memory")
    on_disk = {name for name, in_memory, files in seen if files and not in_memory}
    assert on_disk == ({"hidden"} if preset == "fast" else {"hidden", "dense"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory"]


def test_memory_gives_up_time_then_bits_then_the_whole() -> None:
    parts, asked = published("Qwen/Qwen3-4B"), config(preset="best", samples=64, length=512)
    ways = [(False, False), (True, False), (False, True), (True, True)]  # recompute, lean
    needs = [
        footprint.memory_bytes(parts, replace(asked, recompute=recompute, lean=lean), on_disk=True)
        for recompute, lean in ways
    ]
    chosen = []
    for limit in (needs[0], needs[0] - 1, needs[3]):
        found, fallbacks = footprint.affordable(parts, replace(asked, memory_limit_bytes=limit))
        chosen.append((found.recompute, found.lean, found.train))
        assert len(fallbacks) == found.lean
    assert chosen == [(False, False, "auto"), (True, False, "auto"), (True, True, "auto")]
    assert fallbacks[0].startswith("Adam's moments held in 8 bits: in float32 training would have needed")
    assert needs[1] < needs[0] and needs[3] < needs[2]
    least = replace(asked, memory_limit_bytes=needs[3] - 1)
    assert footprint.affordable(parts, least)[0].train == "blocks"
    insisted, said = footprint.affordable(parts, replace(least, train="model"))
    assert (insisted.train, insisted.lean, insisted.recompute, len(said)) == ("model", True, True, 1)


def test_blocks_are_trained_one_by_one_where_the_whole_does_not_fit(tiny_model_folder: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"samples": 4, "length": 32}
    parts = anatomy.dissect(anatomy.load(tiny_model_folder))
    least = footprint.memory_bytes(parts, PruneConfig(**small, lean=True, recompute=True), on_disk=True)
    assert footprint.affordable(parts, PruneConfig(**small, memory_limit_bytes=least))[0].train == "auto"
    asked = PruneConfig(**small, memory_limit_bytes=least - 1)
    manifest = prune(tiny_model_folder, tmp_path / "limited", asked).manifest
    assert len(manifest["fallbacks"]) == 1 and manifest["fallbacks"][0].startswith("kept weights trained block by blo")
    assert manifest["recovery"]["model"] is None and manifest["recovery"]["blocks"][0]["passes"] > 0
    chosen = prune(tiny_model_folder, tmp_path / "chosen", PruneConfig(**small, train="blocks")).manifest
    assert chosen["fallbacks"] == [] and digests(tmp_path / "limited") == digests(tmp_path / "chosen")
    with pytest.raises(InputError, match="the limit is"):
        prune(tiny_model_folder, tmp_path / "out", PruneConfig(**small, train="model", memory_limit_bytes=least - 1))


def test_a_limit_that_cannot_be_kept_is_refused_before_anything_is_made(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(tiny_model_folder), "-o", str(tmp_path / "out"), "--memory-limit", "100MB"]) == 1
    assert "with hidden states on disk" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "shortage",
    [
        lambda: torch.empty(1 << 62, dtype=torch.uint8),  # what torch itself raises where the host has no more
        lambda: bytearray(1 << 62),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    ],
)
def test_memory_that_ends_is_said_to_have_ended(shortage: Callable[[], Any]) -> None:
    said = r"memory ended \((CUDA out of|can't allocate|out of) memory.*\); free some .* --train blocks"
    with pytest.raises(InputError, match=said), shortage_named():
        list(shortage())
    with pytest.raises(RuntimeError, match="another"), shortage_named():
        raise RuntimeError("another")


def test_sizes_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert [memory_size(text) for text in ("8GiB", "0.5 MiB", "500MB")] == [8 << 30, 1 << 19, 500_000_000]
    for words in ("8", "GiB", "8 gigs", "1.2.3GB"):
        with pytest.raises(SystemExit):
            main(["prune", "model", "-o", "out", "--memory-limit", words])
        assert "is no size; give one as 8GiB" in capsys.readouterr().err
