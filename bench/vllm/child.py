"""A process that answers with vLLM when it is asked to: python -m twofour.bench.vllm.child JSON

Its answers go to what was standard output; what vLLM prints there goes to standard error. vLLM starts others with this
module as their main one, so nothing is done or imported at the top that only the first needs.
"""

import json
import os
import sys
from time import perf_counter
from typing import Any

from twofour.prune.machine.processors import usable_cpus

OWN = ("VLLM_CPU_", "OMP_", "KMP_", "GOMP_", "GLIBC_TUNABLES")  # what of the environment a result depends on


class Session:
    """One vLLM, without a cache of prefixes: all prompts are computed."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from vllm import LLM

        llm = LLM(model=model, **({"enable_prefix_caching": False, "disable_log_stats": True} | options))
        self._engine, self._count = llm.llm_engine, 0

    def facts(self) -> dict[str, Any]:
        import torch
        import vllm

        config = self._engine.model_config
        environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(OWN)}
        return {
            "quantization": config.quantization,
            "dtype": str(config.dtype).removeprefix("torch."),
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "environment": environment,
        }

    def answer(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """So many tokens after each prompt, all at once: when outputs came, and of how many requests each time."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        began, outputs = perf_counter(), list[tuple[float, int]]()
        for prompt in prompts:
            self._count += 1
            self._engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            found = self._engine.step()
            outputs.append((perf_counter() - began, len(found)))
        return {"outputs": outputs}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given, questions = json.loads(sys.argv[1]), {}
    _bind_threads()
    for line in sys.stdin:
        question = json.loads(line)
        if question.pop("what") == "load":
            session = Session(**given)
            questions["answer"], found = session.answer, session.facts()
        else:
            found = questions["answer"](**question)
        print(json.dumps(found), file=answers, flush=True)


def _bind_threads() -> None:
    """All CPUs multiply, unless the environment says otherwise: vLLM keeps one back for itself."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(usable_cpus()))))
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")


if __name__ == "__main__":
    main()
