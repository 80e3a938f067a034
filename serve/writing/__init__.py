"""The dense model's own text, written by the engine's step: prune calibrates on it, `evaluation` judges on it.

In comes a model in memory, out comes what writes with it (`twofour.prune.text.writer` is the protocol): `fused_writer`
where the fused runner takes the model, else prune's own.
"""
