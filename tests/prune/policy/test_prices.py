"""Bytes as the format has them, seconds by hand from a data sheet, and a clock that is asked once for each shape."""

import pytest
import torch

from twofour.prune.errors import InputError
from twofour.prune.format.schemes import Scheme, parts, stored
from twofour.prune.policy.cards import CARDS, SPARSE_SHARE, seconds
from twofour.prune.policy.prices import price, priced
from twofour.prune.solving.magnitude import magnitude

SCHEMES: tuple[Scheme, ...] = ("2:4", "2:4-int8", "dense", "dense-int8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_are_those_that_are_stored(scheme: Scheme) -> None:
    weight = torch.randn(24, 72)
    tensors = parts(stored(magnitude(weight) if scheme.startswith("2:4") else weight, scheme, torch.bfloat16))
    assert price("bytes", torch.bfloat16)((24, 72), scheme) == sum(tensor.nbytes for tensor in tensors.values())


def test_a_token_on_a_card_reads_every_weight_once() -> None:
    found = price("decode", torch.bfloat16, "A100")((4096, 4096), "dense")
    assert found == pytest.approx(1e12 * 2 * 4096**2 / 2039e9, abs=1)


def test_a_prompt_on_a_card_is_arithmetic_and_2_of_4_does_less_of_it() -> None:
    of = price("prefill", torch.bfloat16, "H100")
    dense = of((4096, 4096), "dense")
    assert dense == pytest.approx(1e12 * 2 * 4096**2 * 512 / 989e12, abs=1)
    assert of((4096, 4096), "dense-int8") == dense
    assert of((4096, 4096), "2:4") == of((4096, 4096), "2:4-int8") == pytest.approx(SPARSE_SHARE * dense, abs=1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CARDS)
def test_more_tokens_never_take_less(name: str, scheme: Scheme) -> None:
    found = [seconds(CARDS[name], 512, 512, scheme, tokens, torch.bfloat16) for tokens in (1, 64, 512, 4096)]
    assert found == sorted(found) and found[-1] > found[0]


def test_a_shape_is_timed_once() -> None:
    asked = list[object]()

    def clock(shape: tuple[int, int], scheme: Scheme, tokens: int, dtype: torch.dtype) -> float:
        asked.append((shape, scheme, tokens, dtype))
        return 3e-6

    timed = priced([(8, 4), (8, 4), (4, 8)], price("decode", torch.bfloat16, clock=clock))
    assert timed == {name: dict.fromkeys(SCHEMES, 3_000_000) for name in ("8 x 4", "4 x 8")}
    assert len(asked) == 8 and ((8, 4), "2:4", 1, torch.bfloat16) in asked


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(InputError, match="no card is named 'H900'; give one of A10, "):
        price("prefill", torch.bfloat16, "H900")


def test_seconds_need_a_clock_or_a_card() -> None:
    with pytest.raises(InputError, match="name a card"):
        price("prefill", torch.bfloat16)
