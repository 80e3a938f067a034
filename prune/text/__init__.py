"""The tokens that a model is calibrated and judged on.

In come the names of sources, a tokenizer, and the dense model where that writes the text; out come windows of token
ids, int64 [samples, length]. Read `sources` (which text, and how several are mixed), `writer` (what writes with the
model) and `plain` (the one of this floor), `corpus` (tokens of a file, or the model's own), `conversations` (those that
a chat model writes, and which are fit), `chat` (its template), `questions` (that it is judged on), `hub` (data sets),
`windows` (how a window begins).
"""
