"""What vLLM's own dashboards read is at our /metrics, under the same names and labels."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow
# vllm:x_bucket{model_name="$model"} within a query, and sum by(le, model_name) (... before it
SERIES = re.compile(r"(vllm:\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
OF_THE_SCRAPE = {"namespace", "service"}  # Prometheus puts them on; no server does
GROUPED = re.compile(r"\bby\s*\(([^)]*)\)\s*\(\s*\w+\(\s*(vllm:\w+)")


def read(dashboards: Path) -> dict[str, set[str]]:
    """Series -> the labels that the dashboards' queries name of it."""
    labels: dict[str, set[str]] = {}
    for file in [*dashboards.rglob("*.json"), *dashboards.rglob("*.yaml")]:
        text = file.read_text().replace('\\"', '"').replace("\\n", " ")
        for name, selector in SERIES.findall(text):
            labels.setdefault(name, set()).update(LABEL.findall(selector))
        for names, series in GROUPED.findall(text):
            labels[series] |= {name.strip() for name in names.split(",")}
    return {series: names - OF_THE_SCRAPE for series, names in labels.items()}


def test_every_series_of_the_dashboards(vllm_source: Path, serve: Any, tiny_float32_folder: Path) -> None:
    with serve(tiny_float32_folder, "--served-model-name", "tiny") as url:
        ask = {"model": "tiny", "prompt": "a", "max_tokens": 4, "ignore_eos": True}
        assert httpx.post(f"{url}/v1/completions", json=ask, trust_env=False).status_code == 200
        metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    ours: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            ours.setdefault(sample.name, set()).update(sample.labels)
    theirs = read(vllm_source / "examples" / "observability")
    assert len(theirs) > 20
    missing = theirs.keys() - ours.keys()
    unlabelled = {name: labels - ours[name] for name, labels in theirs.items() if name in ours and labels - ours[name]}
    assert (missing, unlabelled) == (set(), {})
