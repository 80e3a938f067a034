"""The seconds of products: all schemes of a shape in one race, on the tokens that were asked for, products right."""

import pytest
import torch
from torch import Tensor

from twofour.serve.kernels import clock, race

SHAPE = (64, 128)


def test_a_shape_is_raced_once_and_in_all_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    races = list[tuple[set[str], tuple[int, ...], torch.dtype]]()
    original = race.seconds_of

    def watched(forms: dict[str, race.Way], x: Tensor) -> dict[str, float]:
        races.append((set(forms), tuple(x.shape), x.dtype))
        return original(forms, x)

    monkeypatch.setattr(race, "seconds_of", watched)
    seconds = clock.clock("cpu")
    found = [seconds(SHAPE, scheme, 4, torch.bfloat16) for scheme in ("2:4", "2:4-int8", "dense", "dense-int8")]  # type: ignore[arg-type]
    assert all(0 < each < 1 for each in found)
    assert races == [({"2:4", "2:4-int8", "dense", "dense-int8"}, (4, 128), torch.bfloat16)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_races_is_the_weight(dtype: torch.dtype) -> None:
    weight, x = torch.randn(SHAPE).to(dtype), torch.randn(3, 128).to(dtype)
    forms = clock._forms(weight)
    for scheme in ("dense", "dense-int8"):
        torch.testing.assert_close(forms[scheme](x, None).float(), x.float() @ weight.float().T, rtol=0.05, atol=0.5)
    torch.testing.assert_close(forms["2:4"](x, None).float(), forms["2:4-int8"](x, None).float(), rtol=0.05, atol=0.5)
    assert forms["2:4-int8"].nbytes < forms["dense"].nbytes
