"""Ready means warm: what an engine process has done before it says so, and what it does no more after that."""

import asyncio
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from twofour.serve.engine.assembly import warm
from twofour.serve.engine.grammar import any_object
from twofour.serve.engine.process import ProcessEngine
from twofour.serve.engine.types import EngineConfig, EngineInfo, Finish, Prompt, Sampling

VOCABULARY = 262_144
# Notes in a file what is done, in order; "ready" when the engine says that it is.
WATCHED = """
import gc, sys, threading
from twofour.serve.engine import child, grammar, loop, sampler
from twofour.serve.engine.runners.generic import GenericRunner

def watch(place, name, describe):
    as_ever = getattr(place, name)
    def noting(*args, **options):
        with open(sys.argv[2], "a") as notes:
            print(describe(*args, **options), file=notes)
        return as_ever(*args, **options)
    setattr(place, name, noting)

def step(runner, chunks):
    return "decode" if max(len(chunk.tokens) for chunk in chunks) == 1 else "prefill"

def message(sent):
    threads = [thread.name for thread in threading.enumerate()]
    return f"ready, {threads}, frozen {gc.get_freeze_count() > 0}" if "info" in sent else "news"

watch(grammar, "prepare", lambda *_: "tokenizer")
watch(GenericRunner, "forward", step)
watch(sampler, "drawn", lambda *_: "drawn")
watch(loop, "score_prompt", lambda *_: "scored")
watch(sampler, "logprobs", lambda *_: "logprobs")
watch(grammar.Constraint, "allowed", lambda *_: "grammar")
watch(child, "encode", message)
sys.argv[1:] = sys.argv[2:0:-1]
sys.exit(child.main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of next to nothing with a vocabulary as large as they come."""
    path = tmp_path_factory.mktemp("models") / "words"
    known = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
    tokens = [*known, *(f"word{i}" for i in range(VOCABULARY - len(known)))]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, eos_token_id=256, **shape)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_nothing_is_done_for_the_first_time_by_a_request(folder: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    asked = Sampling(3, top_p=0.9, logprobs=1, prompt_logprobs=1, grammar=any_object())

    async def story() -> None:
        config = EngineConfig(str(folder), device="cpu", threads=1)
        engine = ProcessEngine(config, child=("-P", "-c", WATCHED, str(notes)))
        await engine.start()
        assert engine.info.warm_step is not None
        assert (engine.info.warm_step.prefill_tokens, engine.stats.steps, list(engine.steps)) == (80, 0, [])
        pieces = [piece async for piece in engine.submit(Prompt("a", tuple(range(99)), asked))]
        assert pieces[-1].finish in (Finish.LENGTH, Finish.STOP) and pieces[-1].error is None  # it is drawn
        await engine.stop()

    asyncio.run(story())
    before, _, after = notes.read_text().partition("ready, ['MainThread'], frozen True\n")
    work = {"tokenizer", "prefill", "decode", "drawn", "scored", "logprobs", "grammar"}
    assert set(before.splitlines()) == work, "done before it was ready"
    assert set(after.splitlines()) - {"news"} == work - {"tokenizer"}, "done by the request, and nothing else"


@pytest.mark.parametrize(("context", "kv_tokens"), [(2, 16), (64, 16), (64, 64), (4096, 100_000)])
def test_prompts_to_warm_up_with_fit_any_cache(context: int, kv_tokens: int) -> None:
    info = EngineInfo("m", context, 9, (), 16, kv_tokens, 5, 4, {}, "cpu", "float32", False)
    for prompt in warm.prompts(info, "a grammar"):
        assert 0 < len(prompt.tokens) <= warm.TOKENS and prompt.sampling.max_tokens > 0
        assert len(prompt.tokens) + prompt.sampling.max_tokens <= min(context, kv_tokens)
        assert max(prompt.tokens) < 9
