"""Commands of the documentation and for KServe against the parsers of the installed vLLM and router."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml
from deployed import DEPLOY
from documentation import PAGES, blocks
from kserve import pods, shell_words, variables
from replicas import ROUTER

from twofour.serve.commands import serve
from twofour.serve.vllm_edge import flags

LINES = [line for page in PAGES for text in blocks(page, "sh") for line in text.splitlines()]


def vllm_arguments(words: list[str]) -> argparse.Namespace:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    validate_parsed_serve_args(parsed)
    return parsed


def test_there_is_one_of_each() -> None:
    assert {line.split()[0] for line in LINES} == {"pip", "vllm", "twofour", "vllm-router"}
    said = " ".join(LINES)
    assert all(
        flag in said for flag in ("--tensor-parallel-size", "--pipeline-parallel-size", "--nnodes", "--headless")
    )


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vllm serve")])
def test_vllm_takes_it(line: str) -> None:
    parsed = vllm_arguments(shlex.split(line)[2:])
    assert parsed.model_tag.startswith("smol-")


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("twofour serve")])
def test_twofour_and_vllm_take_it(line: str) -> None:
    words, _, passed_on = line.removeprefix("twofour serve ").partition(" -- ")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    given = parser.parse_args(shlex.split(words))
    given.passed_on = shlex.split(passed_on)
    parsed = vllm_arguments(flags.arguments(given, given.port, command=True)[1:])
    assert parsed.port == given.port and parsed.model_tag == "smol-2of4"


def test_vllm_takes_what_the_chart_gives_it() -> None:
    values = yaml.safe_load((DEPLOY / "helm" / "twofour" / "ci" / "3-vllm-gpu-values.yaml").read_text())
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    given = parser.parse_args(["/model", "--engine", "vllm", *values["extraArgs"]])
    given.passed_on = ["--tensor-parallel-size", str(values["vllm"]["tensorParallelSize"]), *values["vllm"]["args"]]
    parsed = vllm_arguments(flags.arguments(given, given.port, command=True)[1:])
    assert (parsed.tensor_parallel_size, parsed.max_model_len, parsed.gpu_memory_utilization) == (2, 8192, 0.9)


def test_vllm_takes_what_production_stack_gives_it() -> None:
    """Its pods have the 30 s that Kubernetes gives; a GPU is one of the kind that has 2:4."""
    values = yaml.safe_load((DEPLOY / "production-stack" / "values.yaml").read_text())
    (model,) = values["servingEngineSpec"]["modelSpec"]
    parsed = vllm_arguments([model["modelURL"], "--enable-prefix-caching", *model["vllmConfig"]["extraArgs"]])
    assert parsed.served_model_name == ["llama"] and parsed.shutdown_timeout < 30
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in model["env"]
    assert all(part["tag"] not in ("", "latest") for part in (model, values["routerSpec"]))


@pytest.mark.parametrize(("role", "rank"), [("leader", 0), ("worker", 1)])
def test_vllm_takes_what_a_shell_makes_of_a_group(role: str, rank: int, tmp_path: Path) -> None:
    parsed = vllm_arguments(shell_words(role, rank, True, tmp_path)[1:])
    assert (parsed.nnodes, parsed.node_rank, parsed.headless) == (2, rank, role == "worker")
    assert (parsed.shutdown_timeout > 0) == (role == "leader") and parsed.seed == 1


def test_vllm_takes_what_is_added_to_its_command() -> None:
    parsed = vllm_arguments(["/mnt/models", *shlex.split(variables(pods()["single"])["VLLM_ADDITIONAL_ARGS"])])
    assert parsed.max_num_queued_reqs == 256


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vllm-router")])
def test_the_router_takes_it(line: str) -> None:
    """They are the flags of the tests that ran."""
    from vllm_router.launch_router import parse_router_args

    parsed = parse_router_args(shlex.split(line)[1:])
    assert len(parsed.worker_urls) == 2 and parsed.health_check_endpoint == "/ready"
    said = dict(re.findall(r"(--[a-z-]+) (\S+)", line))
    ran = dict(zip(ROUTER[::2], ROUTER[1::2], strict=True))
    assert ran.items() - {("--worker-startup-check-interval", "1")} <= said.items()
