"""The verb `plan-validate`: how wrong a profile is on loads that it has not seen."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from twofour.bench.commands import INVALID, schedule_flags, service_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.load.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare what a profile predicts with runs that were measured: of the very same requests, and of others like "
        "them. Exit status 3: a run or the profile is not valid."
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path, help="a document of bench run --out")
    parser.add_argument("--profile", type=Path, required=True, metavar="FILE", help="what bench profile has written")
    parser.add_argument("--url", metavar="URL", help="measure a load there, now; the flags of bench run say which")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")
    service_flags.add_arguments(parser)
    schedule_flags.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from twofour.bench.capacity import profile
    from twofour.bench.capacity.validation import document, validate
    from twofour.bench.capacity.validation_table import table
    from twofour.bench.hardware import circumstances
    from twofour.prune import out

    if not args.runs and not args.url:
        raise InputError("no run to compare with; give documents of bench run --out, or --url")
    out.claim(args.out)
    measured, about = profile.read(args.profile), circumstances()
    runs = {str(file): _read(file) for file in args.runs} | ({args.url: _measured(args)} if args.url else {})
    found = document(measured, [validate(measured, each, name) for name, each in runs.items()]) | about
    whole = json.dumps(found, allow_nan=False)
    out.deliver(whole if args.json else table(found), args.out, whole)
    return 0 if found["valid"] else INVALID


def _read(file: Path) -> "Run":
    from twofour.bench.envelope import checked
    from twofour.bench.load import run, stored

    try:
        said = checked(json.loads(file.read_text(encoding="utf-8")), str(file))
        if said["kind"] != run.KIND:
            raise InputError(f"{file} is a {said['kind']}; give what bench run --out wrote")
        return stored.read(said)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({type(error).__name__}); give what bench run --out wrote") from error


def _measured(args: argparse.Namespace) -> "Run":
    from twofour.bench.load.run import measure
    from twofour.prune.progress import to_stderr

    return measure(service_flags.read(args), schedule_flags.read(args), progress=to_stderr())
