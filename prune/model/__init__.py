"""A dense model taken apart, so that one decoder block at a time can be run and changed.

In comes a folder or a loaded transformers model; out come its blocks, their linears, and the hidden states between
them. Read `anatomy` (what is pruned), `skeleton` (the same without weights), `loading` (with them), `experts` (mixtures
of experts), `head` (lm_head), `batches` (running blocks one by one), then `attention` and `decoding` (the same results
in less time). `ordinary` writes the text tower of a multimodal folder, or one in FP8, as an ordinary dense folder.
`demo_model` makes the model of the demo.
"""
