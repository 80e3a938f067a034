"""lm-eval, EleutherAI's evaluation harness, on models that are loaded as the server loads them.

Its tasks bring data sets from the Hugging Face hub, unless they are files: `include_path` is a folder of task files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from twofour.prune.errors import InputError
from twofour.prune.label.card import task_scores
from twofour.prune.text.windows import bos


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-eval by name, found among its own and, if there is one, in a folder."""

    names: Sequence[str]
    include_path: Path | None = None


@dataclass(frozen=True)
class Score:
    """The score of a model in a task. `error`: one standard error, None if lm-eval gives none."""

    value: float
    error: float | None


Scores = Mapping[str, Mapping[str, Score]]  # task -> metric -> score
Sides = dict[str, dict[str, dict[str, float | None]]]  # task -> metric -> model, model_error, baseline, baseline_error


def require(tasks: Tasks) -> None:
    """Raise InputError unless lm-eval is installed whole and knows the tasks."""
    known = _manager(tasks).all_tasks
    if unknown := [name for name in tasks.names if name not in known]:
        raise InputError(f"lm-eval knows no task {unknown[0]}; see lm-eval ls tasks, or give --lm-eval-path")


def run(model: nn.Module, tokenizer: Any, tasks: Tasks) -> Scores:
    """Let lm-eval ask the model, one question at a time. Raises InputError if a task cannot be run."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # the tokenizer decides whether a text begins with BOS, as everywhere; lm-eval's own default has changed
    asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=bos(tokenizer) is not None)
    try:
        found = simple_evaluate(model=asked, tasks=list(tasks.names), task_manager=_manager(tasks))
    except Exception as error:  # data sets can raise anything: no network, no such split, a script refused
        reason = str(error).partition("\n")[0]
        raise InputError(f"lm-eval cannot run {', '.join(tasks.names)} ({reason}); check the task") from error
    return {task: _scores(results) for task, results in found["results"].items()}


def _scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """The metrics of a task; lm-eval names them `acc,none`, by their filter, and their errors `acc_stderr,none`."""
    scores = {}
    for name, value in results.items():
        metric, _, chosen = name.partition(",")
        if chosen and not metric.endswith("_stderr"):
            error = results.get(f"{metric}_stderr,{chosen}")
            label = metric if chosen == "none" else f"{metric} ({chosen})"
            scores[label] = Score(float(value), float(error) if isinstance(error, float) else None)
    return scores


def _manager(tasks: Tasks) -> Any:
    try:
        import lm_eval.models.huggingface  # noqa: F401  (needs accelerate, which lm-eval does not bring)
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f'lm-eval cannot be imported ({error}); pip install "twofour[lm-eval]"') from None
    return TaskManager(include_path=None if tasks.include_path is None else str(tasks.include_path))


def both(model: nn.Module, dense: nn.Module | None, tokenizer: Any, tasks: Tasks) -> Sides:
    """Ask two models the same, and put their scores side by side, as plain data for JSON."""
    scores = run(model, tokenizer, tasks)
    baseline = run(dense, tokenizer, tasks) if dense else None
    return {
        task: {
            metric: {
                "model": score.value,
                "model_error": score.error,
                "baseline": baseline[task][metric].value if baseline else None,
                "baseline_error": baseline[task][metric].error if baseline else None,
            }
            for metric, score in metrics.items()
        }
        for task, metrics in scores.items()
    }


def table(scores: Sides) -> str:
    """The scores as a person reads them."""
    lines = [f"{'lm-eval':24} {'metric':20} {'baseline':>18} {'model':>18} {'difference':>11}"]
    for task, metrics in scores.items():
        for metric, each in metrics.items():
            value, dense = each["model"], each["baseline"]
            difference = "" if value is None or dense is None else f"{value - dense:+.4f}"
            shown = task_scores(each)
            lines.append(f"{task:24} {metric:20} {shown[0]:>18} {shown[1]:>18} {difference:>11}")
    return "\n".join(lines)
