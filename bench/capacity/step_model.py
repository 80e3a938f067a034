"""How long a step of an engine takes, by what it computes.

A step that computes p prompt tokens and n tokens of answers, reads v tokens of the cache and attends within prompts to
q pairs of tokens takes fixed + p prefill + n decode + v kv + q pair seconds, none of the five below 0.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepModel:
    """Seconds."""

    fixed_s: float  # weights that are read, whatever the step computes
    prefill_s: float  # for each prompt token
    decode_s: float  # for each sequence that decodes
    kv_s: float  # for each token of the cache that a decoding sequence attends to
    pair_s: float = 0.0  # for each pair of a prompt token and a token that it attends to

    def seconds(self, prefill: int, decodes: int, kv: int, pairs: int) -> float:
        return self.fixed_s + self.prefill_s * prefill + self.decode_s * decodes + self.kv_s * kv + self.pair_s * pairs
