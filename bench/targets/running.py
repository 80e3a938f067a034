"""Servers that run already, by name; one whose process group is given is frozen while others are measured."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urldefrag, urlsplit

from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.service import Service
from twofour.bench.load.wire import shown
from twofour.bench.targets import frozen
from twofour.prune.errors import InputError, ServerError


@dataclass(frozen=True)
class Running:
    """A server by the name that tables give it. group: its process group, to be frozen; None: it stays awake."""

    name: str
    service: Service
    group: int | None = None

    def awake(self) -> AbstractContextManager[None]:
        """Not frozen for the length of a `with` block. Raises ServerError where it is not ready again soon."""
        if self.group is None:
            return nullcontext()
        asked = self.service
        return frozen.awake(self.group, Endpoint(asked.url, asked.model, asked.access), self._give_up)

    def _give_up(self, too_late: bool) -> None:
        if too_late:
            raise ServerError(f"{self.name} is not well {frozen.THAW_S:g} s after it was continued; see its log")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for documents, without the key."""
        return {"name": self.name, "group": self.group} | self.service.described()


Ask = Callable[[str, str | None], Service]  # how a URL is asked for one of its models; None: for its only one


def read_running(given: Sequence[str], ask: Ask, plain: Sequence[str] = (), pids: Sequence[str] = ()) -> list[Running]:
    """Read [NAME=]URL or [NAME=]URL#MODEL, names, and NAME=PID. Raises InputError for anything else."""
    parts = list(map(_named, given))
    names = [name for name, _ in parts]
    if not all(name and "://" in url for name, url in parts):
        raise InputError(f"{shown(' '.join(given))} does not name servers; give [NAME=]URL or [NAME=]URL#MODEL")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two servers are named {shown(twice)}; give each a name of its own: NAME=URL")
    groups = dict(map(_group, pids))
    if unknown := {*plain, *groups} - set(names):
        raise InputError(f"{min(unknown)} is no server here; give names of {', '.join(names)} to --plain-for and --pid")
    return [Running(name, _service(address, ask, name in plain), groups.get(name)) for name, address in parts]


def frozen_all(servers: Sequence[Running]) -> AbstractContextManager[None]:
    """Freeze all that can be for the length of a `with` block; all go on in the end."""
    return frozen.frozen([server.group for server in servers if server.group is not None])


def _named(given: str) -> tuple[str, str]:
    """The name and the address; without a name it is that of host and port."""
    name, equals, address = given.partition("=")
    return (name, address) if equals and "/" not in name else (host(given), given)


def host(url: str) -> str:
    """With its port, and without whoever logs in there."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _service(address: str, ask: Ask, plain: bool) -> Service:
    url, model = urldefrag(address)
    service = ask(url, model or None)
    return replace(service, plain=True) if plain else service


def _group(given: str) -> tuple[str, int]:
    """Read NAME=PID of a process that leads its group, as all do that were started by setsid."""
    name, _, pid = given.partition("=")
    if not re.fullmatch("[0-9]{1,9}", pid) or not _leads(int(pid)):
        raise InputError(f"{given} does not name a process that leads its group; start the server by setsid")
    return name, int(pid)


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False
