"""The 2:4 product of many tokens on a GPU, by cuSPARSELt through torch: `kernel` multiplies, `search` finds the best
algorithm for a shape."""
