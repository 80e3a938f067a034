"""The tokens that a model is calibrated and judged on.

In come the names of sources, a tokenizer, and the dense model where that writes the text; out come windows of token
ids, int64 [samples, length]. Read `sources` (which text, and how several are mixed), `corpus` (tokens of a file,
or sampled from the model), `chat` (conversations), `windows` (how a window begins).
"""
