"""The flags that say how a server under test is asked: a Service is made of them."""

import argparse
import json
import sys
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.load.keys import KEY_HELP, read_headers, read_key
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.load.access import Access
    from twofour.bench.load.service import Api, Service

# What the load itself says in every request; `n` and the like would make more answers of one.
_OF_THE_LOAD = ("model", "prompt", "messages", "stream", "max_tokens", "max_completion_tokens", "n", "best_of", "echo")
_SAMPLING = ("temperature", "top_p", "top_k")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="which of the server's models (default: its only one)")
    _add_form(parser.add_argument_group("how the server is asked"))
    _add_access(parser.add_argument_group("what opens the server"))


def _add_form(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--api",
        choices=("completions", "chat"),
        help="which API of OpenAI's (default: that of the URL, else completions)",
    )
    group.add_argument(
        "--plain",
        action="store_true",
        help="without ignore_eos and the like, which some servers refuse; serve a model there that has no end token",
    )
    group.add_argument(
        "--length-field",
        choices=("max_tokens", "max_completion_tokens"),
        default="max_tokens",
        help="what the server calls the length of an answer (default: %(default)s)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="of sampling (default: 0)")
    group.add_argument("--top-p", type=float, metavar="P", help="of sampling")
    group.add_argument("--top-k", type=int, metavar="K", help="of sampling; not every server knows it")
    group.add_argument(
        "--body",
        metavar="JSON",
        help="an object: more fields of every request, null leaves one away; they stand in documents",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="give a request up when nothing has come for so long (default: %(default)s)",
    )


def _add_access(group: "argparse._ArgumentGroup") -> None:
    key = group.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", type=Path, metavar="F", help=KEY_HELP)
    key.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the key")
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of every request; may be repeated. Others on this machine see command lines: rather a file",
    )
    group.add_argument("--header-file", type=Path, metavar="F", help="headers, one NAME=VALUE a line")
    group.add_argument("--ca-file", type=Path, metavar="F", help="PEM: trust its certificates instead of the system's")
    group.add_argument("--insecure", action="store_true", help="trust any certificate")


def read(args: argparse.Namespace) -> "Service":
    """The server at args.url."""
    return service(args, args.url, args.model)


def service(args: argparse.Namespace, url: str, model: str | None = None) -> "Service":
    """The same for one of several servers. model: which of its models; None: its only one."""
    from twofour.bench.load import wire
    from twofour.bench.load.endpoint import served_model
    from twofour.bench.load.service import Service

    if not 0 < args.timeout < inf:
        raise InputError(f"a time-out of {args.timeout:g} s; --timeout is a number above 0")
    api, body, opened = _api(args.api, url), _body(args), access(args)
    if opened.trust() != "of the system" and not wire.target(url).tls:
        flag = "--insecure" if opened.insecure else "--ca-file"
        print(f"warning: {wire.shown(url)} is plain http, without a certificate: {flag} does nothing", file=sys.stderr)
    model = model or served_model(url, opened)
    return Service(url, model, opened, args.plain, args.timeout, api, args.length_field, body)


def access(args: argparse.Namespace) -> "Access":
    from twofour.bench.load.access import Access

    key = read_key(args.api_key_file, args.api_key_env)
    return Access(key, read_headers(args.header, args.header_file), args.ca_file, args.insecure)


def _api(asked: "Api | None", url: str) -> "Api":
    from twofour.bench.load.wire import api_of

    named = api_of(url)
    if asked and named and asked != named:
        raise InputError(f"the URL is that of the {named} API; leave --api {asked} away, or give the server's URL")
    return asked or named or "completions"


def _no_json(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _body(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked beyond the load: sampling parameters, and whatever --body says."""
    sampling = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
    if not all(map(isfinite, sampling.values())):
        raise InputError(f"{sampling} has what is no number; give sampling parameters as numbers")
    if args.body is None:
        return sampling
    try:
        body = json.loads(args.body, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--body is no JSON ({error}); give an object such as '{{\"top_k\": 20}}'") from None
    if not isinstance(body, dict):
        raise InputError("--body is no JSON object; give one such as '{\"top_k\": 20}'")
    if taken := [name for name in body if name in _OF_THE_LOAD or name in sampling]:
        raise InputError(f"--body cannot set {taken[0]}, which the load or another flag sets; leave it away")
    return sampling | body
