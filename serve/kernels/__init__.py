"""y = x W^T for a packed 2:4 weight W, and for a dense one.

In come a packed weight and activations [tokens, in]; out come products [tokens, out], by whichever kernel was fastest
here for that shape and number of tokens. Read `reference` (what is right), `select` (which kernel serves a linear),
`race`, `trial` and `verdicts` (how that is found and kept), `dense` and `rounded`, then `cpu`, `triton`, `cusparselt`.
"""
