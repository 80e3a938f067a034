"""Two replicas behind the real vllm-router, under a load that never pauses: restarted in turn, and one killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from replicas import MODEL, Load, Replica, router, started, under_load, wait_until

SHORT = ("--max-model-len", "512", "--served-model-name", MODEL)
ENGINES = {
    "embedded": (*SHORT, "--engine", "embedded", "--threads", "1"),
    "vllm": (*SHORT, "--engine", "vllm", "--", "--enforce-eager"),
}


@pytest.fixture(scope="module", params=ENGINES)
def replicas(
    request: pytest.FixtureRequest, large_heads_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    command = ("serve", str(large_heads_folders["2:4"]), *ENGINES[request.param])
    found = [Replica(command, folder / f"replica-{core}.log", core) for core in range(2)]
    with started(found):
        yield found


def test_restarted_in_turn_no_request_fails_and_no_stream_is_cut(replicas: list[Replica], tmp_path: Path) -> None:
    with router(replicas, tmp_path / "router.log") as url, under_load(Load(url)) as load:
        for replica in replicas:
            assert replica.terminate() == 0
            replica.start()
            wait_until(replica.is_ready, f"a replica, see {replica.log}")
            wait_until(lambda replica=replica: replica.answered() >= 5, "the router to use it again", 60)
    assert load.broken == [] and load.whole > 20


def test_one_is_killed_and_no_new_request_fails(replicas: list[Replica], tmp_path: Path) -> None:
    """Streams that it was sending are lost with it; all others are answered, by the other one."""
    with router(replicas, tmp_path / "router.log") as url, under_load(Load(url)) as load:
        replicas[0].kill()
        before = load.whole
        wait_until(lambda: load.whole >= before + 20, "answers of the other one", 120)
        lost = list(load.broken)
        replicas[0].start()
        wait_until(replicas[0].is_ready, f"a replica, see {replicas[0].log}")
        wait_until(lambda: replicas[0].answered() >= 5, "the router to use it again", 60)
    assert load.broken == lost and len(lost) <= load.clients
    assert all(each.startswith("stream") or each == "truncated" for each in lost)
