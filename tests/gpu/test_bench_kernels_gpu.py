"""`bench kernels --device cuda` where it belongs: right products, times that can be true, graphs that are replayed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twofour import cli
from twofour.bench.commands import INVALID
from twofour.bench.kernels import contenders, cuda
from twofour.bench.kernels.grid import Grid, Model
from twofour.bench.kernels.measure import measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MATRIX = (1024, 2048)


def test_every_contender_is_measured_and_none_beats_the_copy_bandwidth_by_far() -> None:
    grid = Grid((Model("m", {MATRIX: 2}, (4096, 2048)),), (1, 16, 256), device="cuda", rounds=3, target_s=0.005)
    found = measure(grid)
    assert found.isa.startswith("sm_") and len(found.ceilings) == 1
    assert found.complete and not found.dropped
    assert [(cell.part, cell.tokens) for cell in found.cells] == [
        *(("linear", 1), ("linear", 16), ("linear", 256), ("lm_head", 1), ("lm_head", 16))
    ]
    for cell in found.cells:
        expected = {"torch bf16"} if cell.part == "lm_head" else {"served", "torch bf16"}
        assert expected <= cell.entries.keys()
        for name, entry in cell.entries.items():
            assert entry.copies * entry.weight_bytes > 2 * cuda.cache_bytes() or entry.copies > 1
            # A weight that is found in the L2 cache would be read several times as fast.
            assert min(entry.lap.seconds) > found.ceilings[0].best_s(entry.weight_bytes) / 1.5, name
    missing = {f"2:4 {kernel}" for kernel in cuda.KERNELS} - found.cells[0].entries.keys()
    assert missing <= found.not_measured.keys()


def test_a_replayed_graph_multiplies_by_every_copy() -> None:
    form = contenders.torch_dense(contenders.random_dense(MATRIX, 0, "cuda"))
    (dense,) = contenders.with_copies([form], 3 * form.contender.weight_bytes)
    x = contenders.activations(4, MATRIX[1], 0, "cuda")
    seen: list[torch.Tensor] = []

    def noted(product: contenders.Product) -> contenders.Product:
        def run(x: torch.Tensor) -> torch.Tensor:
            seen.append(product(x))
            return seen[-1]

        return run

    contender = replace(dense, products=tuple(map(noted, dense.products)))
    graph = cuda._captured(contender, x)
    outputs = seen[-len(dense.products) :]
    for output in outputs:
        output.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert len(outputs) == 3 and all(torch.equal(output, dense.products[0](x)) for output in outputs)


def test_the_command_writes_a_document(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    words = ["--device", "cuda", "--shapes", "smollm2-135m", "--tokens", "1,512", "--rounds", "2", "--out", str(out)]
    assert cli.main(["bench", "kernels", *words]) in (0, INVALID)
    document = json.loads(out.read_text())
    assert document["device"] == "cuda" and document["ceiling"]["method"] == "copy"
    assert document["not_measured"]["2:4 int8"] and document["never_slower"]["judged"] == 8
