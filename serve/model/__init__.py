"""A model folder as a transformers model that multiplies by packed weights.

In comes a folder or a hub id, out comes a model with `SparseLinear` inside. Read `loading` (the way from a folder to a
model), `linear` (the layer), `dense_int8` (that of weights that stay dense, rounded), then `quantizer` and `register`
(how transformers learns the format). `stored_int8` is a dense weight in int8 as a folder holds it.
"""
