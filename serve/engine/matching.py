"""Matchers of llguidance, with this server's limits.

An object has about four items for each property that may come next. llguidance's own limit of 2000 items stops at 500
properties, at the first brace; a large form has 1,500. With these, one mask over a vocabulary takes a tenth of a
second. The second limit is on that, because no other sequence gets a token meanwhile.
"""

from typing import Any

MAX_ITEMS = 8192  # of one place in a text
MAX_ITEMS_OF_A_MASK = 400_000


def matcher_of(tokenizer: Any, grammar: str, max_items: int = MAX_ITEMS) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_items_in_row=max_items, step_max_items=MAX_ITEMS_OF_A_MASK)
    return LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
