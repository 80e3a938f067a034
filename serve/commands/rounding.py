"""The flags of `serve` and `eval` that say what is rounded to int8 while a model is loaded."""

import argparse

CHOICES = ("int8",)
LM_HEAD, DENSE_VALUES = "--lm-head", "--dense-values"


def add_arguments(group: "argparse._ActionsContainer") -> None:
    group.add_argument(LM_HEAD, choices=CHOICES, help="round lm_head at load (default: as in the checkpoint)")
    group.add_argument(DENSE_VALUES, choices=CHOICES, help="round the other dense linears (default: likewise)")


def flags(args: argparse.Namespace) -> list[str]:
    """Those that were given, as words of a command."""
    given = {LM_HEAD: args.lm_head, DENSE_VALUES: args.dense_values}
    return [word for flag, value in given.items() if value for word in (flag, value)]
