"""A stand-in for `twofour serve`: two processes, the same log line, a scripted model. Started by tests.

    python stand_in_server.py NAME [--token-s S] [--kernel NAME] [--engine-pid FILE] [--plain] [--die]

Its perplexity, memory and speed follow from NAME: "sparse" in it means half the linears' bytes.
"""

import argparse
import json
import multiprocessing
import os
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOGPROBS = {"dense": -2.0, "sparse": -2.5}


def engine() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the end of its group ends it
    while True:
        time.sleep(60)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    arguments: argparse.Namespace

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def kind(self) -> str:
        return "sparse" if "sparse" in self.arguments.name else "dense"

    def do_GET(self) -> None:
        if self.path in ("/ready", "/health"):
            return self.reply(200, b"{}")
        if self.path == "/v1/models":
            return self.reply(200, json.dumps({"data": [{"id": self.arguments.name}]}).encode())
        if self.path == "/metrics" and not self.arguments.plain:
            return self.reply(200, self.metrics().encode())
        return self.reply(404, b"{}")

    def metrics(self) -> str:
        linears = 1000 if self.kind == "dense" else 500
        labels = 'model_name="m",engine="0"'
        return (
            f'twofour:weight_bytes{{{labels},kind="total"}} {linears + 400}\n'
            f'twofour:weight_bytes{{{labels},kind="linears"}} {linears}\n'
            f"twofour:kv_capacity_tokens{{{labels}}} 4096\n"
            f"twofour:peak_device_bytes{{{labels}}} 0\n"
            f'twofour:kernel_linears{{{labels},kernel="{self.arguments.kernel}"}} 210\n'
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/chat/completions":
            if self.arguments.plain:
                return self.reply(400, b'{"error": {"message": "no chat template"}}')
            choice = {"message": {"role": "assistant", "content": f"<b>Paris</b>, says {self.kind}."}}
        elif body.get("stream"):
            return self.stream(body)
        elif body.get("echo"):
            choice = {"text": body["prompt"], "logprobs": self.scored(body["prompt"].split())}
        else:
            choice = {"text": " and so on" * 3}
        return self.reply(200, json.dumps({"choices": [choice]}).encode())

    def scored(self, tokens: list[str]) -> dict[str, object]:
        """The dense model always names the next token; the sparse one misses every fourth."""
        miss = 4 if self.kind == "sparse" else len(tokens) + 1
        likeliest = [token if place % miss else "wrong" for place, token in enumerate(tokens)]
        return {
            "tokens": tokens,
            "token_logprobs": [None, *([LOGPROBS[self.kind]] * (len(tokens) - 1))],
            "top_logprobs": [None, *({token: -0.1} for token in likeliest[1:])],
        }

    def stream(self, body: dict[str, object]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        prompt, total = len(str(body["prompt"]).split()), int(str(body["max_tokens"]))
        for sent in range(1, total + 1):
            time.sleep(self.arguments.token_s)
            usage = {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}
            self.event(json.dumps({"choices": [{"index": 0, "text": " word"}], "usage": usage}))
        self.event(json.dumps({"choices": [], "usage": usage}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        payload = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(payload), payload))
        self.wfile.flush()

    def reply(self, status: int, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--kernel", default="scripted")
    parser.add_argument("--engine-pid", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--lm-head")
    Handler.arguments = parser.parse_args()
    if Handler.arguments.die:
        raise SystemExit("out of memory, says the script")
    child = multiprocessing.get_context("spawn").Process(target=engine, daemon=True)
    child.start()
    if Handler.arguments.engine_pid:
        Handler.arguments.engine_pid.write_text(str(child.pid))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # leaves its engine behind
    print(f"listening on http://127.0.0.1:{server.server_port}; loading {Handler.arguments.name}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
