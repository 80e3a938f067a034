"""The chat page at /: one file, nothing loaded from elsewhere, and no script but its own."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Response

PATH = "/"


def page_router() -> APIRouter:
    """A route for the page; its policy names the digests of its style and its script."""
    html = files("twofour.serve.http").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    router = APIRouter()

    @router.get(PATH)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)

    return router


def policy(html: str) -> str:
    style, script = (inline_digest(html, tag) for tag in ("style", "script"))
    rules = {"style-src": style, "script-src": script, "connect-src": "'self'"}
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return "; ".join([closed, *(f"{name} {value}" for name, value in rules.items())])


def inline_digest(html: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"
