"""What happens before the first step.

In come the flags; out come a loop that is warm, and what was loaded. Read `assemble` (how the engine is put together),
`intact` (is the folder whole), `capacity` and `memory` (how many tokens the cache holds), `threads` (how many compute),
`order` (additions in one order), `warm` (the first request is as fast as the tenth).
"""
