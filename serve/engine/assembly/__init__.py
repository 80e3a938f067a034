"""What happens before the first step.

In comes a loaded model with the flags; out comes what the engine starts with. Read `intact` (is the folder whole),
`capacity` and `memory` (how many tokens the cache holds), `order` (additions in one order), `warm` (the first request
is as fast as the tenth).
"""
