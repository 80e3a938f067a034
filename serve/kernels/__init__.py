"""y = x W^T for a packed 2:4 weight W, and for a dense one.

In come a packed weight and activations [tokens, in]; out come products [tokens, out], by the kernel that was fastest on
this machine for that shape. Read `reference` (what is right), `select` (which kernel a linear gets), `race`, `trial`
and `verdicts` (how that is found and kept), `dense`, `dense_int8` and `rounded`, then `cpu`, `triton`, `cusparselt`.
`clock` says what a weight would take here in each scheme, for who decides that.

The tensors of a checkpoint are a `Packed`; `CpuWeight` is the same weight in the layout of a kernel, and `CpuKernel`
multiplies by it; a `Choice` is the kernel that `select` found for one linear, and a `SparseLinear` (../model) calls it.
"""
