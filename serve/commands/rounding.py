"""The flags of `serve` and `eval` that say what is rounded to int8 while a model is loaded."""

import argparse

CHOICES = ("int8",)


def add_arguments(group: "argparse._ActionsContainer") -> None:
    group.add_argument("--lm-head", choices=CHOICES, help="round lm_head at load (default: as in the checkpoint)")
    group.add_argument("--dense-values", choices=CHOICES, help="round the other dense linears (default: likewise)")
