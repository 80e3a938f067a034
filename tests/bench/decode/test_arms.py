"""Arms are read from one word each, or refused with what would be right."""

from pathlib import Path

import pytest

from twofour.bench.decode.arms import read_arms
from twofour.prune.errors import InputError


def test_an_arm_is_a_name_a_runtime_its_options_and_a_folder(tmp_path: Path) -> None:
    model = tmp_path / "a:b=c"
    model.mkdir()
    plain, optioned = read_arms([f"a=fused:{model}", f"q8=llama.cpp,weights=q8_0,flash-attention=off:{model}"])
    assert (plain.name, plain.runtime, plain.options, plain.model) == ("a", "fused", {}, model)
    assert optioned.options == {"weights": "q8_0", "flash-attention": "off"}


def test_our_runners_take_what_the_engine_takes(tmp_path: Path) -> None:
    (arm,) = read_arms([f"a=generic,kernels=auto,dtype=float32:{tmp_path}"])
    assert arm.options == {"kernels": "auto", "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fused:m", "fused:m is no arm; give NAME=RUNTIME"),
        ("a=torch:m", "no runtime is named 'torch'; choose one of fused, generic, transformers, llama.cpp"),
        ("a=fused,model=x:m", "fused has no option model; it has dtype, kernels"),
        ("a=transformers,kernels=cpu:m", "transformers has no option kernels; it has dtype"),
        ("a=llama.cpp,weights=q4_k:m", "weights=q4_k is unknown; choose one of bf16, f16, q8_0, q4_0"),
        ("a=llama.cpp,flash-attention=no:m", "flash-attention=no is unknown; choose one of auto, on, off"),
    ],
)
def test_what_is_no_arm_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_arms([text])


def test_a_name_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the name a is given twice"):
        read_arms([f"a=fused:{tmp_path}", f"a=generic:{tmp_path}"])
