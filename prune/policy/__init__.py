"""The best model for a stated cost: which linears become 2:4, which stay dense, and which of them are stored in int8.

In come a walked model, its held-out text and what is asked for, a budget or a divergence; out comes a scheme for each
linear, with what it costs and the divergence that is predicted. Read `sensitivity` (what each linear loses, measured
end to end), `prices` (what it costs: bytes, or seconds of this machine or of a card of `cards`), `knapsack` (the choice
by itself), `curve` (from summed losses to a divergence), then `market`, which puts them together.
"""
