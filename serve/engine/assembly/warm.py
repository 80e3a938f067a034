"""Before an engine is ready it answers prompts of its own, so that no request is the first.

Whatever is imported, compiled, looked up or allocated at its first use is used here: by a prefill, by decode steps, by
every way to sample, by log probabilities and by a grammar. The second run is measured: the time of a step tells how
long later ones may be silent.
"""

import logging
from collections.abc import Sequence

from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.grammar import Constrain
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report
from twofour.serve.engine.runners import Runner
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineConfig, EngineInfo, Finish, Prompt, Sampling, StepRecord

TOKENS = 64  # of the longest prompt: enough for a matrix product, little on a slow machine
OUTPUT = 3

log = logging.getLogger(__name__)


def warm_up(
    runner: Runner, config: EngineConfig, info: EngineInfo, constrain: Constrain, grammar: str | None
) -> StepRecord:
    """Run prompts to their end, twice, and return the largest step of the second time."""
    blocks = Blocks(info.kv_tokens // info.block_size, info.block_size)
    scheduler = Scheduler(blocks, config.max_num_seqs, config.step_tokens, prefix_cache=False)
    loop = Loop(runner, scheduler, info, constrain=constrain)
    reports = [_run(loop, prompts(info, grammar)) for _ in range(2)][1]
    for piece in (piece for report in reports for piece in report.pieces):
        if piece.finish is Finish.ERROR:
            log.warning("a prompt to warm up with has failed: %s", piece.error)
    return max((report.step for report in reports if report.step), key=lambda step: step.tokens)


def prompts(info: EngineInfo, grammar: str | None) -> list[Prompt]:
    """One prompt for each way to sample, as long as the cache and the context allow."""
    limit = min(info.context_length, info.kv_tokens)
    output = min(OUTPUT, limit - 1)
    best = Sampling(output, temperature=0, ignore_eos=True)
    any_way = Sampling(
        output,
        top_k=50,
        top_p=0.9,
        min_p=0.001,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        repetition_penalty=1.1,
        logit_bias={0: 1.0},
        ignore_eos=True,
        logprobs=5,
        prompt_logprobs=1,
    )
    ways = [(TOKENS, best), (8, any_way), *([(8, Sampling(output, grammar=grammar))] if grammar else [])]
    return [_prompt(str(i), min(length, limit - output), info, way) for i, (length, way) in enumerate(ways)]


def _prompt(id: str, length: int, info: EngineInfo, sampling: Sampling) -> Prompt:
    return Prompt(id, tuple((7 * i + 1) % info.vocab_size for i in range(length)), sampling)


def _run(loop: Loop, commands: Sequence[Command]) -> list[Report]:
    arrivals, reports = [list(commands)], list[Report]()
    loop.run(lambda timeout_s: arrivals.pop() if arrivals else None if timeout_s else [], reports.append)
    return reports
