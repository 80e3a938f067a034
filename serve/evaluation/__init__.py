"""What exactly that which is served has lost: `evaluate` for perplexity, KL and agreement against dense, `harness` for
the tasks of lm-eval."""

WINDOW_TOKENS = 512
