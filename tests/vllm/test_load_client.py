"""The load client of `twofour bench` against vLLM's own server, over TLS: both APIs, every token counted."""

from collections.abc import Iterator
from pathlib import Path

import certificates
import pytest
from vllm_server import VllmServer, model

from twofour.bench.load.access import Access
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.run import document, measure
from twofour.bench.load.service import Api, Service
from twofour.bench.load.workload import Lengths, synthetic

LOAD = synthetic(4, Lengths(8), Lengths(6), 0, concurrency=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.made_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("loaded")
    started = VllmServer(model(folder / "model"), folder / "log", "--ssl-certfile", str(certificate))
    yield started.wait()
    started.close()


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_token_comes_over_tls_and_is_counted(server: VllmServer, certificate: Path, api: Api) -> None:
    access = Access(ca_file=certificate)
    assert server.url.startswith("https://") and served_model(server.url, access) == "m"
    run = measure(Service(server.url, "m", access, api=api), LOAD)
    assert [record.error for record in run.records] == [None] * 4
    assert [record.output_tokens for record in run.records] == [6] * 4
    assert run.summary.token_counts == "per chunk"
    assert document(run, False)["load"]["tls"] == "of a file"
    assert bool(run.template_tokens) == (api == "chat")
    assert Endpoint(server.url, "m", access).scrape()
