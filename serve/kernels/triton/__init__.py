"""The 2:4 product of few tokens on a GPU, in Triton.

In come a packed weight in the layout of the kernel and activations; out come products. Read `kernel` (what a linear
calls), `layout` (how a weight is laid out), `plan` (tiles and splits), `decode` (the launch), `programs` (what runs on
the GPU), `ptx` and `scratch`.
"""
