"""A real browser without a window: Debian's chromium, unpacked by fetch_debs and driven by its own protocol over a pipe.

The protocol (https://chromedevtools.github.io/devtools-protocol/): JSON objects, each ended by a zero byte; the browser reads its
descriptor 3 and writes 4. Everything has a limit in time, and the browser ends with the test: it is its own process group.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self

from tests.clients import fetch_debs

LIMIT_S = 60.0  # for one command; a machine under load is slow
FONTS = """\
<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""
OPTIONS = (
    "--remote-debugging-pipe",
    "--no-sandbox",  # root has none; the only pages are ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
)


class Start(Protocol):
    """What starts a program as the first of a process group: Node.popen of a lab."""

    def __call__(
        self, args: Sequence[str], *, env: Mapping[str, str], stdin: int, stdout: int, stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]: ...


class BrowserError(Exception):
    """The browser did not do what it was asked."""


class Browser:
    """The browser's process, and its pages."""

    def __init__(self, debs: Path, folder: Path, start: Start) -> None:
        self.debs = debs
        self.folder = folder  # for its own files
        self.start = start
        self.number = 0
        self.rest = b""
        self.pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        config = self.folder / "fonts.conf"
        config.write_text(FONTS.format(fonts=self.debs / "usr/share/fonts", cache=self.folder / "fonts"))
        folders = [*fetch_debs.libraries(self.debs), *fetch_debs.private_libraries(self.debs)]
        environment = {
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": ":".join(folders),
            "FONTCONFIG_FILE": str(config),
        }
        program = self.debs / "usr/lib/chromium/chromium-headless-shell"
        theirs, self.out = os.pipe()
        self.into, answers = os.pipe()
        words = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >&2', "sh"]
        words += [str(program), *OPTIONS, f"--user-data-dir={self.folder / 'profile'}", "about:blank"]
        with (self.folder / "stderr").open("wb") as errors:
            self.process = self.start(words, env=environment, stdin=theirs, stdout=answers, stderr=errors)
        os.close(theirs)
        os.close(answers)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.out)  # it ends when its pipe does
        os.close(self.into)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # helpers of its own that are left
        except ProcessLookupError:
            pass
        self.process.wait(10)

    def open(self, url: str, *, dark: bool = False, width: int = 1400, height: int = 1000) -> Page:
        """A new page, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.scheme("dark" if dark else "light")
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page

    def call(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """One command; returns its result. BrowserError."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        text = json.dumps(asked | ({"sessionId": session} if session else {}))
        os.write(self.out, text.encode() + b"\0")
        deadline = time.monotonic() + LIMIT_S
        while (answer := self._next(deadline)).get("id") != self.number:
            if answer.get("sessionId") in self.pages:
                self.pages[answer["sessionId"]].happened(answer["method"], answer["params"])
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.into], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserError(f"no answer within {LIMIT_S:.0f} s: {self._said()}")
            part = os.read(self.into, 1 << 16)
            if not part:
                raise BrowserError(f"it ended: {self._said()}")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(text))

    def _said(self) -> str:
        return (self.folder / "stderr").read_text("utf-8", "replace")[-2000:]


class Page:
    """One page, with what it asked for and complained of."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session
        self.requests: list[str] = []
        self.errors: list[str] = []

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command to this page."""
        return self.browser.call(method, self.session, **parameters)

    def happened(self, method: str, event: dict[str, Any]) -> None:
        """Note what tests ask for."""
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(event["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(event["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {event['message']}")

    def value(self, script: str) -> Any:
        """What an expression is. BrowserError when it throws."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise BrowserError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true. BrowserError after LIMIT_S."""
        deadline = time.monotonic() + LIMIT_S
        while not self.value(script):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {LIMIT_S:.0f} s: {script}")
            time.sleep(0.02)

    def scheme(self, name: str) -> None:
        """What the reader's system prefers: "dark" or "light"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        box = self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center'}});"
            " const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def write(self, text: str) -> None:
        """As a person would, into what has the keyboard."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """A PNG of all of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        done = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(done["data"]))
