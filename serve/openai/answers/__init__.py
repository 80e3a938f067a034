"""From sampled tokens to the bytes of an answer.

In come the body of a request and the engine's pieces, out goes a whole answer or a stream. Read `answer` (one request
from its bytes to its last byte), `owned` (who may end it), `generation` (pieces from the engine), `choice`,
`detokenize` and `stop_strings` (pieces become text), `replies`, `dumps` and `streams` (text becomes JSON and events),
`spans` (its trace).
"""
