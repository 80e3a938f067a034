"""Our edge in front of vLLM: one command starts vLLM, hardened in its own process, with the guarantees of our endpoint.

In come the flags of `twofour serve`, out goes a vLLM that is started, watched, drained and ended. Read `choice` (which
engine), `flags` (ours in vLLM's words, or refused by name), `environment`, `supervise` (the life of the process that
the user started, the parent of vLLM's), `control` (the socket between the two) and `child` (where vLLM's begins).

Inside of vLLM's server: `settings` is what the parent tells it, `middleware` puts the layers of edge/ and those here
around vLLM's application: `requests` (what vLLM would guess, coerce or ignore is refused), `salts` (whose cached
prefixes a request may find), `failures` (its errors in our form), `endings` (every answer ends, in time and in a way
that a client notices). `plugin` adds the paths that it lacks, `engine_state` is what they ask of its engine, `shared`
what both know, `metrics` is what /metrics has, and `connections` are those of http/.
"""
