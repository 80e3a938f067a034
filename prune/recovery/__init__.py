"""Kept weights trained against the dense model, their zeros fixed.

In come pruned linears and the text; out come better values for the weights that were kept. Read `kept` (the trained
parameters and the training loop), then `recover` (what they are trained to: a dense block's outputs, or the dense
model's predictions).
"""
