"""The quality of a model exactly as it is served, and what it has lost against dense.

In comes a model folder, with its dense baseline if there is one; out come perplexity, KL and agreement on text
(`evaluate`) and on the dense model's answers to questions (`conversation`), and scores in the tasks of lm-eval
(`harness`).
"""

WINDOW_TOKENS = 512
