"""The environment in which vLLM starts."""

import json
import os

import pytest

from twofour.prune.errors import InputError
from twofour.prune.machine import control_groups
from twofour.serve.edge.auth import digest
from twofour.serve.vllm_edge import choice, environment
from twofour.serve.vllm_edge.settings import VARIABLE, Settings, read

TOLD = Settings("m", digests=(digest(b"key").hex(),), requests_per_minute=5, cors_origins=("https://a.example",))


def test_the_allow_list_keeps_what_the_user_has() -> None:
    assert environment.allow_list(None, ["a", "b"]) == ["a", "b", "twofour", "twofour_edge"]
    assert environment.allow_list("mine, twofour", ["a"]) == ["mine", "twofour", "twofour_edge"]
    assert environment.allow_list("", ["a"]) == ["twofour", "twofour_edge"]


def test_bounds_are_set_unless_the_user_has_set_them() -> None:
    found = environment.environment(TOLD, None, {"VLLM_MAX_N_SEQUENCES": "7", "PATH": "x"})
    assert found["VLLM_MAX_N_SEQUENCES"] == "7" and found["PATH"] == "x"
    assert found["VLLM_MAX_COMPLETION_PROMPTS"] == "128"
    assert found["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


def test_the_server_is_one_that_has_middleware() -> None:
    assert environment.environment(TOLD, None, {"VLLM_USE_RUST_FRONTEND": "1"})["VLLM_USE_RUST_FRONTEND"] == "0"


def test_vllm_asks_for_no_key_of_its_own() -> None:
    with pytest.raises(InputError, match="unset it and give --api-key-file"):
        environment.environment(TOLD, None, {"VLLM_API_KEY": "secret"})


def test_settings_arrive_and_no_key_does() -> None:
    found = environment.environment(TOLD, None, {})
    assert read(found) == Settings(**json.loads(found[VARIABLE]))
    assert read(found).edge.api_keys == (digest(b"key"),)
    assert read(found).edge.limits.requests_per_minute == 5
    assert "key" not in found[VARIABLE].replace("digests", "")


def test_threads_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_for_cpus", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3, 9})
    found = environment.environment(TOLD, 2, {"VLLM_CPU_OMP_THREADS_BIND": "auto"})
    assert (found["VLLM_CPU_OMP_THREADS_BIND"], found["VLLM_CPU_NUM_OF_RESERVED_CPU"]) == ("3,5", "0")
    with pytest.raises(InputError, match="--threads 3"):
        environment.bound_to(4)
    monkeypatch.setattr(environment, "is_for_cpus", lambda: False)
    with pytest.raises(InputError, match="GPU"):
        environment.bound_to(2)


@pytest.mark.parametrize(
    ("quota", "for_cpus", "threads"),
    [(2.5, True, "2"), (0.5, True, "1"), (None, True, None), (4.0, True, None), (2.5, False, None)],
)
def test_threads_are_as_many_as_a_quota_pays_for(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, for_cpus: bool, threads: str | None
) -> None:
    monkeypatch.setattr(environment, "is_for_cpus", lambda: for_cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {100, 101, 102, 103})  # none of this machine's
    monkeypatch.setattr(control_groups, "cpus", lambda: quota)
    found = environment.environment(TOLD, None, {})
    assert found.get("OMP_NUM_THREADS") == threads
    assert found.get("VLLM_CPU_OMP_THREADS_BIND") == (threads and "nobind")


def test_a_quota_does_not_change_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "is_for_cpus", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {100, 101})
    monkeypatch.setattr(control_groups, "cpus", lambda: 1.0)
    given = environment.environment(TOLD, None, {"OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "auto"})
    assert (given["OMP_NUM_THREADS"], given["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "auto")
    assert environment.environment(TOLD, 2, {})["VLLM_CPU_OMP_THREADS_BIND"] == "100,101"


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.choose("vllm")[0] == "vllm" and choice.choose("embedded")[0] == "embedded"
    found: list[object] = [None]
    monkeypatch.setattr(choice, "find_spec", lambda name: found[0])
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    assert choice.choose("auto") == ("embedded", "vLLM is not installed")
    with pytest.raises(InputError, match="--engine embedded"):
        choice.installed_version()
    found[0] = object()
    monkeypatch.setattr(choice, "version_of", lambda name: "0.32.0" if name == "vllm" else None)
    assert choice.choose("auto")[0] == "vllm"
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    assert choice.choose("auto") == ("embedded", "this machine has no GPU")
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    monkeypatch.setattr(choice, "version_of", lambda name: "0.31.2" if name == "vllm" else None)
    engine, why = choice.choose("auto")
    assert engine == "embedded" and "too old" in why
    with pytest.raises(InputError, match=r"0\.32"):
        choice.installed_version()
