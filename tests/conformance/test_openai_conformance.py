"""What others say an OpenAI endpoint is, against the real server with a tiny random model.

The specification is OpenAI's own, read out of the package llm-comply; nothing of it is committed.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
KEY = "conformance"
PATHS = "^/(completions|chat/completions|models)$"
NO_END = "finish_reason: expected 'stop', got 'length'"
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"

# Requests that this server must answer with 200, whatever their values: the specification's own schemas allow what
# only OpenAI's models can do.
COMMON: dict[str, Any] = {
    "model": {"type": "string", "enum": ["tiny"]},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 6},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0.01, "maximum": 1},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**31},
    "stop": {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1, "maxLength": 8}},
    "user": {"type": "string", "maxLength": 20},
    "response_format": {
        "type": "object",
        "required": ["type"],
        "additionalProperties": False,
        "properties": {"type": {"type": "string", "enum": ["text", "json_object"]}},
    },
}
TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
TOKENS = {"type": "array", "minItems": 1, "maxItems": 9, "items": {"type": "integer", "minimum": 0, "maximum": 319}}
PROMPT = {"oneOf": [TEXT, TOKENS, {"type": "array", "minItems": 1, "maxItems": 3, "items": TEXT}]}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "additionalProperties": False,
    "properties": {"role": {"type": "string", "enum": ["system", "user", "assistant"]}, "content": TEXT},
}


def request(required: str, **own: Any) -> dict[str, Any]:
    properties = {**COMMON, **own}
    return {
        "type": "object",
        "required": ["model", "max_tokens", required],
        "additionalProperties": False,
        "properties": properties,
    }


# `logprobs` excludes `echo`: OpenAI's specification wants a number where OpenAI, and everyone, says null.
REQUESTS = {
    "CreateCompletionRequest": request("prompt", prompt=PROMPT, echo={"type": "boolean"}),
    "CreateChatCompletionRequest": request(
        "messages",
        messages={"type": "array", "minItems": 1, "maxItems": 3, "items": MESSAGE},
        logprobs={"type": "boolean"},
        stream={"type": "boolean"},
    ),
}


# The specification describes the chunk, not the event around it, nor the word at the end. Of streamed text completions
# it says nothing.
CHUNK = {"$ref": "#/components/schemas/CreateChatCompletionStreamResponse"}
DATA = {
    "anyOf": [
        {"enum": ["[DONE]"]},
        {"type": "string", "contentMediaType": "application/json", "contentSchema": CHUNK},
    ]
}
EVENTS = {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": DATA}}}


@pytest.fixture(scope="module")
def specification() -> Path:
    found = importlib.util.find_spec("llm_comply")
    if found is None or found.origin is None:
        pytest.skip("needs llm-comply and schemathesis: pip install --group conformance")
    return Path(found.origin).parent / "specs" / "openai_chat.json"


@pytest.fixture(scope="module")
def url(serve: Any, tiny_float32_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with serve(tiny_float32_folder, "--served-model-name", "tiny", "--api-key-file", str(keys)) as url:
        yield url


def fuzz(specification: Path, url: str, *options: str) -> int:
    """The number of cases, all of which passed."""
    fixed = "--phases fuzzing --seed 1 --continue-on-failure --suppress-health-check all --no-color"
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        str(specification),
        "--url",
        f"{url}/v1",
        *fixed.split(),
    ]
    command += ["--include-path-regex", PATHS, "--header", f"Authorization: Bearer {KEY}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0 and counts is not None, done.stdout[-8000:] + done.stderr[-2000:]
    assert counts[1] == counts[2], done.stdout[-8000:]
    print(counts[0])
    return int(counts[1])


def test_any_request_of_the_specification(specification: Path, url: str) -> None:
    """And ones that break it."""
    checks = f"{CHECKS},negative_data_rejection,unsupported_method,ignored_auth"
    assert fuzz(specification, url, "--checks", checks, "--max-examples", "60") > 60


def test_requests_that_must_succeed(specification: Path, url: str, tmp_path: Path) -> None:
    """The specification knows no other status than 200 here, so that `status_code_conformance` demands it."""
    document = json.loads(specification.read_text())
    document["openapi"] = "3.1.0"
    document["components"]["schemas"].update(REQUESTS)
    chat = document["paths"]["/chat/completions"]["post"]["responses"]["200"]["content"]
    chat["text/event-stream"] = EVENTS
    ours = tmp_path / "ours.json"
    ours.write_text(json.dumps(document))
    checks = ("--checks", f"{CHECKS},status_code_conformance", "--mode", "positive")
    assert fuzz(ours, url, *checks, "--max-examples", "100", "--exclude-path-regex", "^/models$") > 100


def test_llm_comply(specification: Path, url: str) -> None:
    """All but what this server refuses: tools and images. Whether a random model ends by itself is chance."""
    options = ["--format", "openai-chat", "--json", "--model", "tiny", "--base-url", f"{url}/v1", "--api-key", KEY]
    main = "import sys; from llm_comply.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", main, "run", *options], capture_output=True, text=True, timeout=300)
    results = [result for result in json.loads(done.stdout)["results"] if result.get("errors") != [NO_END]]
    failed = {result["id"] for result in results if result["status"] == "failed"}
    assert failed == {"chat-tool-calling", "chat-image-input"}, done.stdout
