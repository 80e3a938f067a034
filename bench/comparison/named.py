"""Arms by their names: a model each, what its server is started with, and what it is known to lose."""

import argparse
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twofour.bench.comparison import quality
from twofour.bench.comparison.quality import Quality
from twofour.bench.targets.running import host
from twofour.prune.errors import InputError
from twofour.prune.format.folder import read_json, resolve
from twofour.prune.format.weights import form_of
from twofour.serve.commands import rounding

MIXED = "mixture"  # 2:4 and dense linears in one model
RUNNING = "running"  # whatever a server has that runs already
_IN_A_BLOCK = re.compile(r"\.\d+\..*(?<!\.gate)(?<!\.router)$")  # a linear of a decoder block, but no router


@dataclass(frozen=True)
class NamedArm:
    name: str
    model: str  # a folder, a hub id, or the URL of a server that runs already
    kind: str = "dense"  # or `sparse`, MIXED, or RUNNING
    flags: tuple[str, ...] = ()  # for its server

    @property
    def runs(self) -> bool:
        return self.kind == RUNNING

    @property
    def rounding(self) -> list[str]:
        """Those flags that `eval` has, too: what is rounded at load."""
        parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        rounding.add_arguments(parser)
        try:
            return rounding.flags(parser.parse_known_args(self.flags)[0])
        except argparse.ArgumentError as error:
            raise InputError(f"{self.name} has --arm-flags that serve does not know: {error}") from error


def is_named(given: str) -> bool:
    """NAME=MODEL, in which a NAME is no address and no path."""
    name, equals, _ = given.partition("=")
    return bool(name and equals) and "/" not in name


def read_named(given: Sequence[str], flags: Sequence[str] = ()) -> list[NamedArm]:
    """Read [NAME=]MODEL each, and NAME=FLAGS. Raises InputError."""
    models = dict[str, str]()
    for text in given:
        name, model = _split(text) if is_named(text) else (_own_name(text), text)
        if name in models:
            raise InputError(f"the name {name} is given twice; give NAME=MODEL, each arm its own name")
        models[name] = model
    started = {name: tuple(shlex.split(words)) for name, words in by_name(flags, models, "--arm-flags").items()}
    if unserved := [name for name in started if "://" in models[name]]:
        raise InputError(f"{unserved[0]} runs already and cannot be given --arm-flags; start the server with them")
    return [NamedArm(name, model, kind_of(model), started.get(name, ())) for name, model in models.items()]


def _own_name(given: str) -> str:
    """That of the folder, or of the host."""
    return host(given) if "://" in given else Path(given).resolve().name


def by_name(given: Iterable[str], names: Iterable[str], flag: str) -> dict[str, str]:
    """Read NAME=SOMETHING of known names. Raises InputError."""
    known, found = list(names), dict[str, str]()
    for text in given:
        name, what = _split(text)
        if name not in known:
            raise InputError(f"{flag} {text} names no arm; give NAME=... with one of {', '.join(known)}")
        found[name] = what
    return found


def _split(text: str) -> tuple[str, str]:
    name, _, rest = text.partition("=")
    return name, rest


def kind_of(model: str) -> str:
    """Whether a folder holds a dense model, a 2:4 one, or one with linears of both kinds; of a URL nobody knows."""
    if "://" in model:
        return RUNNING
    folder = resolve(model)
    if form_of(folder) == "dense":
        return "dense"
    quantization = read_json(folder / "config.json").get("quantization_config") or {}
    in_blocks = [name for name in quantization.get("ignore", ()) if _IN_A_BLOCK.search(name)]
    return MIXED if in_blocks or (quantization.get("schemes") or {}).get("dense-int8") else "sparse"


def known_qualities(given: Sequence[str], arms: Sequence[NamedArm]) -> dict[str, Quality]:
    """Read NAME=FILE each. Raises InputError."""
    files = by_name(given, [arm.name for arm in arms], "--quality")
    if arms[0].name in files:
        raise InputError(f"{arms[0].name} is what the others are compared with and loses nothing; give no --quality")
    return {name: quality.from_file(Path(file)) for name, file in files.items()}


def measured_qualities(arms: Sequence[NamedArm], known: Mapping[str, Quality], text: Path | None) -> dict[str, Quality]:
    """What every arm but the first loses against the first; by `twofour eval` where it is not known.

    Of servers that run already it is known or not.
    """
    first, *others = arms
    missing = [arm for arm in others if arm.name not in known and not (arm.runs or first.runs)]
    if missing and first.rounding:
        raise InputError(
            f"{first.name} is rounded at load, and quality is against a model as it is stored; name an arm without "
            "--arm-flags first, or give --quality for all or --no-quality"
        )
    found = {arm.name: quality.of_models(first.model, arm.model, text, arm.rounding) for arm in missing}
    return dict(known) | found


def require_one_text(qualities: Mapping[str, Quality]) -> None:
    """Raise InputError where losses are of different texts, and so cannot be compared."""
    texts = {(quality.text, quality.tokens) for quality in qualities.values()}
    if len(texts) > 1:
        said = ", ".join(f"{name} on {quality.tokens} of {quality.text}" for name, quality in qualities.items())
        raise InputError(f"quality was not measured on one text ({said}); give eval and compare the same --text")
