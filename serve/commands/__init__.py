"""The verbs of this floor: `serve`, whose flags are in `arguments`, and `eval`. Both have those of `rounding`.

`serve_vllm` is `serve` with vLLM as its engine; `starting` is what both say when they are ready.
"""
