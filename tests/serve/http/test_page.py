"""The chat page: one file that asks nobody but this server."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.lifecycle import PROBES

REPLY = "hello wörld, 🤗 all"


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
