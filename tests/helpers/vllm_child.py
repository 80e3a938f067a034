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
from torch._subclasses.fake_tensor import FakeTensor


def _held(model: nn.Module) -> dict[str, Any]:
    """What a loaded model holds, and which matrices are alive in the whole process."""
    from twofour.serve.vllm_plugin import op

    gc.collect()
    alive = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and not isinstance(each, FakeTensor)]
    tensors = {each.data_ptr(): each.nbytes for each in [*model.parameters(), *model.buffers()]}
    return {
        "bytes": sum(tensors.values()),
        "kernels": sorted({type(kernel).__name__ for kernel in op._kernels.values()}),
        "layers": [name for name, module in model.named_modules() if hasattr(module, "weight_packed")],
        "matrices": sorted({(str(each.dtype), *each.shape) for each in alive if each.dim() == 2 and not each.is_meta}),
        "threads": torch.get_num_threads(),
    }


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
        sampling = SamplingParams(
            temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False, logprobs=5
        )
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        lora = LoRARequest("adapter", 1, asked["adapter"]) if asked.get("adapter") else None
        if folder := asked.get("then_load"):
            llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if level := asked.get("sleep"):
            llm.sleep(level)
            llm.wake_up()
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
        answers = [output.outputs[0] for output in outputs]
        first = [{str(token): found.logprob for token, found in each.logprobs[0].items()} for each in answers]
        found: dict[str, Any] = {"tokens": [list(each.token_ids) for each in answers], "logprobs": first}
        if asked.get("held"):
            found |= llm.apply_model(_held)[0]
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
