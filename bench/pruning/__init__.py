"""Presets and budgets of pruning, and folders as they are, compared by quality, minutes and bytes.

In come a dense model, a text and presets; out come a document of runs, its table and its charts. Read `presets` (the
story), `judged` (what stands beside the runs, and bytes), `four_bit` (4 bits, simulated), then `charts`.
"""
