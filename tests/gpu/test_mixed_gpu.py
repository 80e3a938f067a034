"""A mixed folder on a device: its 2:4 linears by the kernels there, dense ones in int8 expanded, which is said."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from mixed_folders import mixed

from twofour.prune.format.folder import read_json
from twofour.serve.model.loading import load_model, weight_report

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_logits_are_those_of_the_cpu(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = mixed(tiny_model_folder, tmp_path / "mixed")
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        expected = load_model(str(folder), "cpu", kernels="reference")(ids).logits.float()
        model = load_model(str(folder), "cuda")
        found = model(ids.to("cuda")).logits.float().cpu()
    assert float((found - expected).norm() / expected.norm()) < 0.02
    count = Counter(read_json(folder / "twofour.json")["schemes"].values())["dense-int8"]
    notes = weight_report(model).notes
    assert any(note.startswith(f"{count} dense linears in int8 are expanded") for note in notes), notes
