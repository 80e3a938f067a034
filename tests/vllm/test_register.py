"""The entry point: what every start of vLLM runs, whatever it serves."""

import logging
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from twofour.serve import vllm_plugin
from twofour.serve.vllm_plugin import versions

BUDGET_MODULES = ("twofour.serve.kernels", "twofour.serve.engine", "twofour.serve.app", "twofour.prune.solving")
START = "from vllm.engine.arg_utils import EngineArgs; import sys; before = set(sys.modules); "
START += "from twofour.serve.vllm_plugin import register; register(); "


def test_vllm_finds_it() -> None:
    (found,) = [each for each in entry_points(group="vllm.general_plugins") if each.name == "twofour"]
    assert found.load() is vllm_plugin.register


def test_it_is_registered_once_and_again() -> None:
    from vllm.model_executor.layers.quantization import get_quantization_config

    vllm_plugin.register()
    first = get_quantization_config("twofour")
    vllm_plugin.register()
    assert get_quantization_config("twofour") is first


def test_a_start_that_serves_other_models_imports_no_kernels() -> None:
    code = START + "print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = run.stdout.splitlines()[-1].split()
    assert "twofour.serve.vllm_plugin.config" in imported
    assert not [name for name in imported if name.startswith(BUDGET_MODULES)]


@pytest.mark.parametrize(
    ("version", "registers", "words"),
    [
        ("0.32.0", True, ""),
        ("0.32.0+cpu", True, ""),
        ("0.33.1rc2", True, ""),
        ("0.34.0", True, "was not tried with vLLM 0.34.0"),
        ("1.0.0", True, "was not tried"),
        ("0.31.2", False, "steps aside: vLLM 0.31.2 is too old"),
        ("0.9.1", False, "too old"),
        ("dev", True, "was not tried"),
    ],
)
def test_which_versions_it_serves(caplog: pytest.LogCaptureFixture, version: str, registers: bool, words: str) -> None:
    with caplog.at_level(logging.WARNING):
        assert versions.fits(version) is registers
    assert words in caplog.text and bool(words) == bool(caplog.records)


@pytest.mark.parametrize("breaks", ["versions", "config"])
def test_it_never_raises(breaks: str) -> None:
    """A vLLM whose modules are not as ours expect starts all the same, with a warning."""
    code = START.replace("register(); ", "") + (
        "sys.modules.update({'vllm.model_executor.layers.quantization.base_config': None, 'vllm.utils': None}); "
        f"sys.modules['twofour.serve.vllm_plugin.{breaks}'] = None; register(); print('goes on')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "goes on" in run.stdout and "twofour steps aside" in run.stderr
