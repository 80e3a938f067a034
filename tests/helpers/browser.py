"""A real browser without a window, told what to do through its pipe."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

COLOURS = """(async () => {
  const image = new Image(); image.src = 'data:image/png;base64,%s'; await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0);
  const seen = new Map(), data = new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer);
  for (const dot of data) seen.set(dot, (seen.get(dot) || 0) + 1);
  const [most] = [...seen.entries()].sort((a, b) => b[1] - a[1]);
  return {width: image.width, height: image.height, colours: seen.size, ground: most[0] & 0xffffff};
})()"""


# What reaches out of the page to the right, but for what can be scrolled.
OVERFLOW = """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""


class Browser:
    """Chromium without a window, told what to do through its pipe: documents of JSON, each ended by a zero."""

    def __init__(self, profile: Path) -> None:
        theirs, self._write = os.pipe()
        self._read, theirs_too = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
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
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """What it evaluates to, once that is something; the time is a limit, not a measure."""
        end_at = time.monotonic() + 30
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end_at, self.evaluate("document.body.innerText")
            time.sleep(0.02)
        return value

    def look(self, width: int, dark: bool = False, medium: str = "screen") -> None:
        """See the page as on a screen of that many pixels across, 800 high, or on paper."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def screenshot(self) -> bytes:
        """The whole page as PNG, however long it is."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def colours(self, picture: bytes) -> dict[str, int]:
        """Of a PNG: its width and height, how many colours are in it, and which is the most frequent."""
        return self.evaluate(COLOURS % base64.b64encode(picture).decode())

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self._call("Page.printToPDF", preferCSSPageSize=True)["data"])

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


def nothing_sticks_out(page: str, folder: Path) -> None:
    """A page is seen whole on a phone in the dark and on a desk in the light, and something is drawn on it."""
    file = folder / "page.html"
    file.write_text(page)
    browser = Browser(folder / "profile")
    try:
        for width, dark in ((360, True), (1200, False)):
            browser.open(file.as_uri())
            browser.look(width, dark)
            browser.until("document.querySelector('main') && document.readyState === 'complete'")
            assert browser.evaluate(OVERFLOW) == []
            picture = browser.screenshot()
            browser.open("about:blank")
            assert browser.colours(picture)["colours"] > 30
    finally:
        browser.close()
