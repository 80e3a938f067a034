"""Our own engine, timed by its parts: `step` (a decode step without its linears) and `http_layer` (what the HTTP layer
alone sustains, before the engine process of `scripted_engine` and `scripted_server`, which computes nothing)."""
