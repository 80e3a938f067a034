"""llm-compressor's own pruning, run by the Python of its own environment; knows nothing of twofour.

    .parity/bin/python tests/parity/oracle.py sparsegpt|wanda MODEL IDS OUT

Prunes the folder MODEL, in the dtype it is stored in, on IDS (safetensors: `ids` int64 [samples, length]), and writes
the dense folder OUT. Prints the seconds of pruning alone. 2:4, block 128 and damping 0.01 as llm-compressor has them,
all linears of the decoder layers, one layer at a time.
"""

import os
import sys
import time

from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
DEFAULTS = {"block_size": 128, "dampening_frac": 0.01}


def main(method: str, folder: str, ids_file: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)  # unused, and oneshot insists on it
    ids = load_file(ids_file)["ids"]
    text = DataLoader([{"input_ids": row} for row in ids], batch_size=1)
    modifier = MODIFIERS[method](sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"])
    if method == "sparsegpt":  # the defaults that the promise names
        assert {name: getattr(modifier, name) for name in DEFAULTS} == DEFAULTS
    start = time.perf_counter()
    oneshot(model=model, processor=tokenizer, dataset=text, recipe=[modifier], pipeline="sequential")
    seconds = time.perf_counter() - start
    model.save_pretrained(out, save_compressed=False)
    print(seconds)


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(sys.argv[4])))  # llm-compressor leaves its logs where it runs
    main(*sys.argv[1:])
