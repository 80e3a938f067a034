"""Continuous batching, in a process of its own.

In come prompts and how to sample, out come token ids, piece by piece. Read `types` (the nouns), `loop` (step after
step), `scheduler` and `blocks` (which sequences run, in which memory), `sequence`, `sampler`, `drawing`, `grammar` and
`matching` (the next token), `runners` (the arithmetic). Then the two sides of the pipe: `process` and `supervise` in
the server, `child` in the process of the engine, `messages` between them. `assembly` puts the engine together when it
starts.
"""
