"""`twofour serve --engine vllm` with a compiled 2:4 model says what transformers says."""

from pathlib import Path

from scripted_engine import build_tokenizer
from vllm_models import greedy, pruned
from vllm_runs import PROMPTS, TOKENS
from vllm_server import VllmServer


def test_a_compiled_model_behind_the_edge(tmp_path: Path) -> None:
    forms = pruned(tmp_path / "llama", "llama")
    build_tokenizer().save_pretrained(forms.packed)
    server = VllmServer(
        forms.packed, tmp_path / "log", "--dtype", "float32", passed_on=("--no-enforce-eager",), OMP_NUM_THREADS="2"
    )
    try:
        asked = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answer = server.wait().complete(prompt=PROMPTS, **asked)
        assert answer.status_code == 200, answer.text
        said = [choice["token_ids"] for choice in answer.json()["choices"]]
    finally:
        server.close()
    assert said == greedy(forms.dense, PROMPTS, TOKENS)
    assert any((tmp_path / "cache" / "torch_compile_cache").rglob("*")), "it was compiled"
