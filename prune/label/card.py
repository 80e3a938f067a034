"""The model card: README.md of a pruned folder, made from its manifest by one pure function.

The manifest is the label and the card its readable form: whoever changes the manifest (`twofour eval --label`) writes
the card anew. The front matter is what the Hugging Face hub reads. A licence is only ever carried over from the base
model, never chosen.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from twofour.prune.config import BEGUN, CHAT, SELF
from twofour.prune.format import Format
from twofour.prune.format.dense_int8 import int8_bytes
from twofour.prune.format.tower import Tower
from twofour.prune.label import answers, mixture
from twofour.prune.label.quality import with_error

TASKS_HEAD = ("task", "metric", "dense", "2:4")
QUALITY_HEAD = (
    *("text", "against calibration", "ppl dense", "ppl 2:4", "ratio"),
    *("KL, nats", "top-1 agreement", "gap closed"),
)
NOT_MEASURED = "Not measured yet. `twofour eval {name} --baseline DENSE --label` measures it and writes it here."
NO_LICENCE = "The folder of the base model names no licence: ask who made it before this model is passed on."
QUALITY_NOTE = (
    "Each text is cut into windows, and the first token of a window, BOS where that is said, is not scored. KL is "
    "KL(dense || pruned); top-1 agreement is the share of tokens where both find the same next token likeliest; ± is "
    "one standard error."
)
HEAD_NOTE = (
    "These figures are those with lm_head in int8; by itself, all else the same, that is KL {} from lm_head as it was."
)
GAP_NOTE = (
    "Gap closed is (ppl of A - ppl) / (ppl of A - ppl of dense), A being what `--against` named: the same model pruned "
    "by SparseGPT, as a rule. In brackets the same with log perplexity."
)


def card(manifest: Mapping[str, Any], name: str, form: Format) -> str:
    """Write the card of a pruned model. `name`: of its folder."""
    origin = manifest["origin"]
    model = f"The text model of {origin['name']}" if origin.get("tower") else origin["name"]
    linears = f"{len(manifest['linears'])}{_of_all(manifest)} linears"
    opening = (
        f"{model} with {linears} pruned to strict 2:4 by twofour "
        f"{manifest['versions']['twofour']}: of every four neighbouring weights of a row, two are zero."
    )
    parts = [
        ["# " + name, opening],
        ["## Use", *_use(name, form)],
        ["## Quality", *_quality(manifest, name)],
        ["## What was done", _table(("", ""), list(done(manifest)))],
        *([["## How the decoder blocks are stored", *_mixture(manifest)]] if mixture.is_mixed(manifest) else []),
        [
            "## Loss by kind of linear",
            f"Relative loss: {manifest['loss_kind']}. By block: report.html.",
            _losses(manifest["linears"]),
        ],
        ["## Left dense", *_exceptions(manifest)],
        ["## Licence", _licence(origin)],
    ]
    body = "\n\n".join(text for part in parts for text in part)
    return f"---\n{_front(origin, form)}\n---\n{body}\n"


def _of_all(manifest: Mapping[str, Any]) -> str:
    return f" of the {len(manifest['schemes'])} decoder" if mixture.is_mixed(manifest) else ""


def _mixture(manifest: Mapping[str, Any]) -> list[str]:
    return [mixture.NOTE, _table(mixture.HEAD, mixture.share_rows(manifest))]


def _front(origin: Mapping[str, Any], form: Format) -> str:
    from huggingface_hub import ModelCardData

    named = {"base_model": origin["base_model"]} if origin["base_model"] else {}
    library = "twofour" if form == "packed" else "transformers"
    tags = ["twofour", "2of4", "sparse"]
    return ModelCardData(
        **origin["licence"], **named, library_name=library, pipeline_tag="text-generation", tags=tags
    ).to_yaml()


def _use(name: str, form: Format) -> list[str]:
    if form == "dense":
        return ["The zeros are stored: transformers loads this model like any other."]
    return [
        "The zeros are not stored: twofour serves and loads this model.",
        f"```console\ntwofour serve {name}\n```",
        f'```python\nfrom twofour.serve import load_model\n\nmodel = load_model("{name}")\n```',
    ]


def _quality(manifest: Mapping[str, Any], name: str) -> list[str]:
    measured: Mapping[str, Mapping[str, Any]] = manifest.get("quality") or {}
    if not measured:
        return [NOT_MEASURED.format(name=name)]
    gaps = [GAP_NOTE] if any(figures.get("gap_closed") is not None for figures in measured.values()) else []
    tasks = [_table(TASKS_HEAD, rows)] if (rows := list(_task_rows(manifest))) else []
    asked_of = [_table(answers.HEAD, asked), answers.NOTE] if (asked := answers.rows(manifest)) else []
    return [_table(QUALITY_HEAD, quality_rows(manifest)), quality_note(manifest), *gaps, *asked_of, *tasks]


def quality_note(manifest: Mapping[str, Any]) -> str:
    """Say what the figures are, and what of the loss is that of lm_head in int8 alone, where it was measured."""
    alone = [
        f"{with_error(figures['head_kl_nats'], figures['head_kl_error'], '.4f')} ({text})"
        for text, figures in manifest["quality"].items()
        if figures.get("head_kl_nats") is not None
    ]
    return f"{QUALITY_NOTE} {HEAD_NOTE.format(', '.join(alone))}" if alone else QUALITY_NOTE


def _task_rows(manifest: Mapping[str, Any]) -> Iterator[list[str]]:
    """The scores of both models in lm-eval, a row for each task and metric."""
    for task, metrics in manifest.get("lm_eval", {}).items():
        for metric, each in metrics.items():
            yield [task, metric, *task_scores(each)]


def task_scores(sides: Mapping[str, float | None]) -> list[str]:
    """The score of dense and that of 2:4, as `evaluate` gives them; "-" for one that is missing."""
    scores = [(sides[who], sides[f"{who}_error"]) for who in ("baseline", "model")]
    return ["-" if score is None else with_error(score, error, ".4f") for score, error in scores]


def quality_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    """What was measured, a row for every text, under QUALITY_HEAD."""
    measured = manifest.get("quality") or {}
    return [_quality_row(text, figures, manifest["calibration"]) for text, figures in measured.items()]


def _quality_row(text: str, figures: Mapping[str, Any], calibration: Mapping[str, Any] | None) -> list[str]:
    dense, sparse = figures["baseline_perplexity"], figures["perplexity"]
    gap, log_gap = figures.get("gap_closed"), figures.get("nll_gap_closed")
    begun = _begun(None if figures["sampled"] else figures.get("begins_with"))
    return [
        f"{text} ({figures['windows']} x {figures['window_tokens']} tokens{begun})",
        likeness(text, figures["sampled"], calibration),
        f"{dense:.2f}",
        with_error(sparse, figures["perplexity_error"], ".2f"),
        f"{sparse / dense:.3f}x",
        with_error(figures["kl_nats"], figures["kl_error"], ".4f"),
        f"{figures['agreement']:.1%}",
        "-" if gap is None or log_gap is None else f"{gap:.2f} ({log_gap:.2f})",
    ]


def likeness(text: str, sampled: bool, calibration: Mapping[str, Any] | None) -> str:
    """Say how near a text of the evaluation is to the one of calibration, as far as their sources tell."""
    if calibration is None:
        return "there was none"
    sources = {source["source"].removeprefix(BEGUN) for source in calibration["sources"]}
    if sampled:
        return "of its kind" if SELF in sources else "foreign"
    if text in sources:
        return "the same file"
    return "another file" if sources - {SELF, CHAT} else "foreign"


def done(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name what was done to the base model, and by what."""
    preset, machine = manifest["preset"], manifest["machine"]
    if commit := manifest["origin"].get("commit"):
        yield "commit of the base model", commit
    if taken := manifest["origin"].get("tower"):
        yield "text model", str(Tower(taken["model"], taken["text"], taken["left_bytes"]))
    yield (
        "preset" if preset else "method",
        f"{preset} (masks by {manifest['method']})" if preset else manifest["method"],
    )
    yield "kept weights", _values(manifest["values"])
    if policy := manifest.get("policy"):
        yield "mixture", mixture.met(policy)
    if once := manifest.get("schemes_once"):
        yield "read back from int8", mixture.counts(once)
    if head := manifest.get("lm_head"):
        yield "lm_head", head_kind(head)
    yield "calibration", _calibration(manifest["calibration"])
    yield "recovery", _recovery(manifest)
    yield "time", f"{manifest['minutes']:.1f} minutes on {machine['device']} ({processor(manifest)})"
    yield "peak memory", f"{manifest['peak_memory_bytes'] / 2**30:.2f} GiB"
    yield "versions", ", ".join(f"{package} {version}" for package, version in manifest["versions"].items())


def _values(values: Mapping[str, Any]) -> str:
    once = values.get("rounded_once_to")
    return f"{values['dtype']}, read back from {once['dtype']}, to which they were rounded" if once else values["dtype"]


def head_kind(head: Mapping[str, Any]) -> str:
    """Say how lm_head is stored, and what that adds on the disk."""
    if once := head.get("rounded_once_to"):
        return f"{head['dtype']}, read back from {once['dtype']}, to which it was rounded"
    kind = f"{head['dtype']} with a scale for each {head['scale_columns']} columns"
    if not head["tied"]:
        return kind
    added = f"{int8_bytes(*head['shape']) / 1e6:,.1f} MB more on disk"
    return f"{kind}, stored beside the embeddings that the base model ties it to: {added}"


def processor(manifest: Mapping[str, Any]) -> str:
    """The name of what did the work: of the GPU where there was one."""
    machine = manifest["machine"]
    return str(machine.get("gpu") or machine["processor"])


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none"
    length = calibration["length"]
    parts = [
        f"{_source(each)}, {each['samples']} x {length} tokens{_begun(each.get('begins_with'))}"
        for each in calibration["sources"]
    ]
    return f"{'; '.join(parts)}; seed {calibration['seed']}"


def _begun(token: str | None) -> str:
    """Say that each window of a text begins with BOS, which is not part of the text."""
    return "" if token is None else ", each after BOS"


def _source(source: Mapping[str, Any]) -> str:
    """Name a source, and what is known of it: its digest or commit, or who wrote it and what was dropped."""
    written = {SELF: "text that the dense model wrote", CHAT: "conversations that the dense model wrote"}
    name = written.get(source["source"], source["source"])
    if name.startswith(BEGUN):
        name = f"text that the dense model wrote, begun with pieces of {name.removeprefix(BEGUN)}"
    about = [source["written_by"]] if source.get("written_by") else []
    if counts := source.get("conversations"):
        about.append(f"{counts['kept']} of {counts['questions']} kept, {counts['cut']} of them without their end")
    if commit := source.get("commit"):
        about.append(f"commit {commit[:12]}")
    if digest := source.get("sha256"):
        about.append(f"SHA-256 {digest[:12]}...")
    return f"{name} ({'; '.join(about)})" if about else name


def _recovery(manifest: Mapping[str, Any]) -> str:
    recovery = manifest["recovery"]
    if recovery is None:
        return "none"
    steps = ["block by block", *([f"as a whole model ({trained(manifest)})"] if recovery["model"] else [])]
    return f"kept weights trained {', then '.join(steps)}; masks fixed"


def trained(manifest: Mapping[str, Any]) -> str:
    """Say what training all kept weights together won back."""
    outcome = manifest["recovery"]["model"]
    gain = f"KL to dense {outcome['before']:.3f} -> {outcome['after']:.3f} nats on held-out text"
    before = ", before lm_head was rounded" if manifest.get("lm_head") else ""
    tokens = outcome.get("tokens")
    text = f"passes: {outcome['passes']}" if tokens is None else f"tokens of fresh text: {tokens}"
    return f"{gain}, {text}{before}"


def _losses(linears: Mapping[str, Mapping[str, Any]]) -> str:
    kinds: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, linear in linears.items():
        kinds[name.rpartition(".")[2]][name] = linear["loss"]
    rows = []
    for kind, losses in kinds.items():
        worst = max(losses, key=lambda name: losses[name])
        rows.append((kind, str(len(losses)), f"{fmean(losses.values()):.4f}", f"{losses[worst]:.4f} at {worst}"))
    return _table(("kind", "linears", "mean", "largest"), rows)


def _exceptions(manifest: Mapping[str, Any]) -> list[str]:
    dense = "\n".join(f"- {line}" for line in mixture.dense_lines(manifest)) or "No linear."
    fallbacks = "\n".join(f"- {fallback}" for fallback in manifest["fallbacks"]) or "none."
    return [dense, f"Fallbacks from what was asked: {fallbacks}"]


def _licence(origin: Mapping[str, Any]) -> str:
    if origin["licence_from"] is None:
        return NO_LICENCE
    copied = f" Copied along: {', '.join(origin['licence_files'])}." if origin["licence_files"] else ""
    return f"That of the base model, as its {origin['licence_from']} states it: {origin['licence']['license']}.{copied}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
