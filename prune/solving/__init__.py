"""Which two of four weights are kept, and their new values: pure functions that know nothing of models.

In comes one weight [out, in] and what was gathered of its inputs (`statistics`); out comes the 2:4 weight. Read
`magnitude`, `wanda`, `sparsegpt`, `refine` (masks and weights found together), then `gptq` (kept weights to int8).
"""
