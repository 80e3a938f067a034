"""Clients that people use, with a tiny random model; each is tried where it is installed."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # what these packages do to each other is not judged here
]
QUESTION = "Say something."
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def url(serve: Any, tiny_float32_folder: Path) -> Iterator[str]:
    with serve(tiny_float32_folder, "--served-model-name", "tiny", "--dtype", "float32") as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def said(url: str) -> str:
    """What every client must hear."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="none") as client:
        messages = [{"role": "user", "content": QUESTION}]
        text: str = client.chat.completions.create(model="tiny", messages=messages, **GREEDY).choices[0].message.content
    assert text
    return text


def test_langchain(url: str, said: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    chat = langchain.ChatOpenAI(base_url=url, api_key="none", model="tiny", **GREEDY)
    answer = chat.invoke(QUESTION)
    assert answer.content == said
    assert answer.usage_metadata["output_tokens"] == answer.response_metadata["token_usage"]["completion_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == said
    assert asyncio.run(chat.ainvoke(QUESTION)).content == said
    assert [answer.content for answer in chat.batch([QUESTION] * 4)] == [said] * 4


def test_langchain_knows_a_prompt_that_is_too_long(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    exceptions = pytest.importorskip("langchain_core.exceptions")
    chat = langchain.ChatOpenAI(base_url=url, api_key="none", model="tiny", **GREEDY)
    with pytest.raises(exceptions.ContextOverflowError):
        chat.invoke("a" * 3000)


def test_litellm(url: str, said: str) -> None:
    litellm = pytest.importorskip("litellm", reason="pip install litellm")
    ask: dict[str, Any] = {
        "model": "hosted_vllm/tiny",
        "api_base": url,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    answer = litellm.completion(**ask, **GREEDY)
    assert answer.choices[0].message.content == said
    assert answer.usage.completion_tokens > 0
    chunks = litellm.completion(**ask, **GREEDY, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert asyncio.run(litellm.acompletion(**ask, **GREEDY)).choices[0].message.content == said


def test_litellm_knows_a_prompt_that_is_too_long(url: str) -> None:
    litellm = pytest.importorskip("litellm", reason="pip install litellm")
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion("hosted_vllm/tiny", [{"role": "user", "content": "a" * 3000}], api_base=url, **GREEDY)


def test_answers_go_back_as_they_came(url: str) -> None:
    """Each client's own message, with whatever fields it has, is the next request's."""
    asked = {"role": "user", "content": QUESTION}
    openai, litellm = pytest.importorskip("openai"), pytest.importorskip("litellm")
    langchain = pytest.importorskip("langchain_openai")
    with openai.OpenAI(base_url=url, api_key="none") as client:
        message = client.chat.completions.create(model="tiny", messages=[asked], **GREEDY).choices[0].message
        for said in (message, message.model_dump()):
            client.chat.completions.create(model="tiny", messages=[asked, said, asked], **GREEDY)
    ask: dict[str, Any] = {"model": "hosted_vllm/tiny", "api_base": url}
    message = litellm.completion(**ask, messages=[asked], **GREEDY).choices[0].message
    for said in (message, message.model_dump()):
        litellm.completion(**ask, messages=[asked, said, asked], **GREEDY)
    chat = langchain.ChatOpenAI(base_url=url, api_key="none", model="tiny", **GREEDY)
    chat.invoke([("user", QUESTION), chat.invoke(QUESTION), ("user", QUESTION)])


TASKS = {
    "likely": "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n",
    "continued": (
        "output_type: generate_until\ndoc_to_target: text\nmetric_list: [{metric: exact_match}]\n"
        "generation_kwargs: {until: ['~~'], max_gen_toks: 12, do_sample: false, temperature: 0}\n"
    ),
}


def write_tasks(folder: Path, choices: Sequence[str] = (" blue", " there was a king", " 4")) -> None:
    """Two tasks of lm-eval on four texts."""
    texts = ["Once upon a time", "The sky is", "1, 2, 3,", "wörld"]
    documents = [{"text": text, "choices": choices} for text in texts]
    (folder / "texts.json").write_text("\n".join(map(json.dumps, documents)))
    for name, kind in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/texts.json}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}doc_to_text: '{{{{text}}}}'\n{kind}")


def evaluate(folder: Path, kind: str, arguments: str) -> dict[str, list[Any]]:
    """Task -> what the model answered, by lm-eval's own command."""
    out = folder / kind
    words = [
        "--model",
        kind,
        "--model_args",
        arguments,
        "--device",
        "cpu",
        "--tasks",
        ",".join(TASKS),
        "--include_path",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, "--output_path", str(out), "--log_samples", "--batch_size", "1"],
        env={**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = {}
    for task in TASKS:
        (file,) = out.rglob(f"samples_{task}_*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))
        answers[task] = [sample["filtered_resps"] for sample in samples]
    return answers


@pytest.mark.demo
def test_lm_eval_finds_the_same_continuations_greedy(serve: Any, demo_model_folder: Path, tmp_path: Path) -> None:
    """With the demo model, in float32: of equal logits the endpoint's format cannot say which comes first."""
    pytest.importorskip("lm_eval", reason="pip install 'lm-eval[api,hf]'")
    write_tasks(tmp_path, ["4", "in", "the", "a", "blue", "é🤗"])
    with serve(demo_model_folder, "--served-model-name", "demo", "--dtype", "float32", "--kernels", "reference") as url:
        served = f"model=demo,base_url={url}/v1/completions,tokenizer_backend=huggingface,tokenizer={demo_model_folder}"
        ours = evaluate(tmp_path, "local-completions", f"{served},max_length=1024")["likely"]
    theirs = evaluate(tmp_path, "hf", f"pretrained={demo_model_folder},dtype=float32")["likely"]
    greedy = [[is_greedy for _, is_greedy in document] for document in theirs]
    assert {"True", "False"} <= {str(one) for document in greedy for one in document}
    assert [[is_greedy for _, is_greedy in document] for document in ours] == greedy
    for mine, other in zip(ours, theirs, strict=True):
        assert [float(score) for score, _ in mine] == pytest.approx([float(score) for score, _ in other], abs=1e-2)


def test_lm_eval_scores_as_it_scores_the_model_itself(url: str, tiny_float32_folder: Path, tmp_path: Path) -> None:
    """Log likelihoods through echo and logprobs, and greedy texts: those of transformers on the same weights."""
    pytest.importorskip("lm_eval", reason="pip install 'lm-eval[api,hf]'")
    write_tasks(tmp_path)
    served = f"model=tiny,base_url={url}/completions,tokenizer_backend=huggingface,tokenizer={tiny_float32_folder}"
    ours = evaluate(tmp_path, "local-completions", f"{served},max_length=1024")
    theirs = evaluate(tmp_path, "hf", f"pretrained={tiny_float32_folder},dtype=float32")
    assert len(ours["likely"]) == len(ours["continued"]) == 4
    assert ours["continued"] == theirs["continued"]
    for mine, other in zip(ours["likely"], theirs["likely"], strict=True):
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
        assert [float(score) for score, _ in mine] == pytest.approx([float(score) for score, _ in other], abs=1e-3)
