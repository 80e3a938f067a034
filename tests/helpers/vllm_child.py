"""A process with vLLM that loads one model after another: requests as lines of JSON come in, answers go out.

It is run as a program, by vllm_runs.py. Engine and worker live in it, so that what goes wrong is an exception here.
"""

import gc
import json
import os
import sys
from typing import Any

import torch
from torch import nn


def _held(model: nn.Module) -> dict[str, Any]:
    """What the layers hold: bytes of all tensors that a module can reach, and the kernels' names."""
    from twofour.serve.vllm_plugin import op

    kernels = {kernel.name for kernel in op._kernels.values()}  # type: ignore[attr-defined]
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()] if t.numel()}
    by_name = {name: list(t.shape) for name, t in model.named_parameters()}
    return {"bytes": sum(tensors.values()), "kernels": sorted(kernels), "parameters": by_name}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    options = {"enforce_eager": True, "max_model_len": 128, "skip_tokenizer_init": True, "seed": 0, **asked["options"]}
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        options["distributed_executor_backend"] = "uni"
    llm = None
    try:
        llm = LLM(asked["model"], **options)
        sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        lora = LoRARequest("adapter", 1, asked["adapter"]) if asked.get("adapter") else None
        for call in asked.get("calls", ()):
            llm.collective_rpc(call)
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
        found: dict[str, Any] = {"tokens": [list(output.outputs[0].token_ids) for output in outputs]}
        if asked.get("held"):
            found |= llm.apply_model(_held)[0]
            found["threads"] = torch.get_num_threads()
        return found
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what vLLM prints goes to standard error
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
