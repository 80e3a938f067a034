"""The chat page: one file that asks nobody but this server."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.lifecycle import PROBES

REPLY = "hello wörld, 🤗 all"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_and_its_policy(shared: Any) -> None:
    answer = shared.client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'" and rules["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert rules[f"{tag}-src"] == f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def test_nothing_comes_from_elsewhere(shared: Any) -> None:
    text = shared.client.get("/").text
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|<link|<img|src=|innerHTML|eval\(| on[a-z]+=", text)


def test_open_where_it_is_let_and_absent_without(launch: Any) -> None:
    keys = (digest(b"k"),)
    assert launch(edge=EdgeConfig(api_keys=keys, open_paths=PROBES | {"/"})).client.get("/").status_code == 200
    assert launch(edge=EdgeConfig(api_keys=keys)).client.get("/").status_code == 401
    assert launch(ui=False).client.get("/").status_code == 404


class Browser:
    """Chromium without a window, told what to do through its pipe: documents of JSON, each ended by a zero."""

    def __init__(self, profile: Path) -> None:
        theirs, self._write = os.pipe()
        self._read, theirs_too = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"]
        become = "import os, sys; read, write, *chromium = sys.argv[1:]; os.dup2(int(read), 3); os.dup2(int(write), 4)"
        start = [sys.executable, "-c", f"{become}; os.execv(chromium[0], chromium)", str(theirs), str(theirs_too)]
        self._process = subprocess.Popen([*start, *command], pass_fds=[theirs, theirs_too], stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(theirs_too)
        self._numbers, self._session, self._rest = itertools.count(1), "", b""

    def open(self, url: str) -> None:
        target = self._call("Target.createTarget", url=url)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def evaluate(self, script: str) -> Any:
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """What it evaluates to, once that is something; the time is a limit, not a measure."""
        end_at = time.monotonic() + 30
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end_at, self.evaluate("document.body.innerText")
            time.sleep(0.02)
        return value

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        call: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._write, json.dumps(call).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            received = os.read(self._read, 1 << 16)
            assert received, "the browser has ended"
            self._rest += received
        document, _, self._rest = self._rest.partition(b"\0")
        return json.loads(document)


SAY = "$('text').value = %s; $('form').requestSubmit()"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(launch: Any, tmp_path: Path) -> None:
    """It names the model, streams an answer, says how fast, keeps the conversation, and shows errors."""
    server = launch()
    browser = Browser(tmp_path)
    try:
        browser.open(server.url)
        browser.until("typeof $ === 'function' && $('model').textContent === 'm'")
        browser.evaluate(SAY % "'<b>hi</b>'")
        figures = browser.until("document.querySelector('.figures')?.textContent")
        assert re.fullmatch(r"\d+ tokens · first after \d+\.\d\d s( · [\d.]+ tokens/s)?", figures)
        said = "[...document.querySelectorAll('.said')].map((line) => line.textContent)"
        assert browser.evaluate(said) == ["<b>hi</b>", REPLY]
        browser.evaluate(SAY % "'again'")
        browser.until("document.querySelectorAll('.figures').length === 2")
        assert len(server.engine.prompts[-1].tokens) > 2 * len(server.engine.prompts[0].tokens)
        browser.evaluate(SAY % "'x'.repeat(1000)")
        assert "maximum context length" in browser.until("document.querySelector('.error')?.textContent")
        assert browser.evaluate("document.querySelector('.user b')") is None
    finally:
        browser.close()
