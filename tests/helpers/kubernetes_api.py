"""As much of the Kubernetes API as who watches pods asks of it: a list, then what changes."""

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

LABELS = {f"app.kubernetes.io/{name}": value for name, value in (("name", "twofour"), ("component", "engine"))}


def pod(name: str, ip: str, ready: bool = True, ends: bool = False) -> dict[str, Any]:
    """As the API shows it. ends: somebody has deleted it, and it still answers."""
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    meta: dict[str, Any] = {"name": name, "namespace": "models", "labels": LABELS, "resourceVersion": "2"}
    if ends:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"phase": "Running", "podIP": ip, "conditions": [condition]}
    containers = [{"name": "engine", "image": "engine"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": containers}, "status": status}


@dataclass
class Api:
    pods: list[dict[str, Any]]
    asked: set[tuple[str, str]] = field(default_factory=set)  # method and path
    changes: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue)

    def change(self, found: dict[str, Any]) -> None:
        self.changes.put({"type": "MODIFIED", "object": found})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> Api:
        return cast("Server", self.server).api

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.api.asked.add(("GET", address.path))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if "watch" in parse_qs(address.query):
            self.watch()
            return
        listed = {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": self.api.pods}
        body = json.dumps(listed).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def watch(self) -> None:
        """One JSON document a line, for as long as there is something to come."""
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while change := self.api.changes.get():
            line = json.dumps(change).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    api: Api


@contextmanager
def kubernetes(pods: Sequence[dict[str, Any]], folder: Path) -> Iterator[tuple[Api, dict[str, str]]]:
    """The API, and the environment of a process that is to ask it."""
    server = Server(("127.0.0.1", 0), Handler)
    server.api = Api(list(pods))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.api, {"KUBECONFIG": str(config(folder / "kubeconfig", server.server_port))}
    finally:
        server.api.changes.put(None)
        server.shutdown()
        thread.join()
        server.server_close()


def config(file: Path, port: int) -> Path:
    cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "here", "context": {"cluster": "here", "user": "here"}}
    user: dict[str, Any] = {"name": "here", "user": {}}
    found = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "here"}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **found}))
    return file
