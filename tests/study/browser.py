"""A headless Chromium of this machine, driven over its debugging pipe: no other package is needed."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
SECONDS = 60.0


def chromium() -> str | None:
    """The browser's path, or None where this machine has none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A running browser with an empty profile."""
    path = chromium()
    assert path is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, from_write)]

    def place() -> None:  # the pipe's ends are the third and the fourth file of the browser
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(3, 4),
        preexec_fn=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (to_read, from_write, *high):
        os.close(fd)
    made = Browser(to_write, from_read)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            made.send("Browser.close")
        for fd in (to_write, from_read):
            os.close(fd)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    """Messages over the pipe, one JSON document and a zero byte each."""

    def __init__(self, to: int, source: int) -> None:
        self.to, self.source = to, source
        self.buffer, self.number = b"", 0
        self.events: list[dict[str, Any]] = []

    def send(self, name: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": name, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next(time.monotonic() + SECONDS)
            if got.get("id") == self.number:
                assert "error" not in got, (name, got["error"])
                return dict(got.get("result", {}))
            self.events.append(got)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.source], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser did not answer")
            read = os.read(self.source, 1 << 16)
            if not read:
                raise OSError("the browser has gone")
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def page(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a file in a new tab and wait until it is loaded. All that it asks for and complains of is kept."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        made = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            made.send(f"{domain}.enable")
        made.resize(width, height)
        made.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.events.clear()
        made.send("Page.navigate", url=file.as_uri())
        made.wait(f"location.href === {json.dumps(file.as_uri())} && document.readyState === 'complete'")
        made.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        return made


class Page:
    """One open page."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def send(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Ask this page for something."""
        return self.browser.send(name, self.session, **parameters)

    def run(self, script: str) -> Any:
        """The value of an expression; an error in it is an error here."""
        got = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never came true: {condition}"
            time.sleep(0.02)

    def resize(self, width: int, height: int = 900) -> None:
        """Set the window's size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def press(self, key: str) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39, "ArrowDown": 40}
        text = {"Enter": "\r", " ": " "}.get(key)
        about = {"key": key, "windowsVirtualKeyCode": codes[key], **({"text": text} if text else {})}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in about.items() if k != "text"})

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that fits."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and of what the page may not do, since it was opened."""
        self.run("1")
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            name, about = event["method"], event["params"]
            if name == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
            elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif name == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(str(about["entry"]["text"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened."""
        self.run("1")
        return [
            str(event["params"]["request"]["url"])
            for event in self.browser.events
            if event.get("method") == "Network.requestWillBeSent" and event.get("sessionId") == self.session
        ]

    def picture(self, file: Path, whole: bool = True) -> Path:
        """A PNG of the page, or of what the window shows."""
        got = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(got["data"]))
        return file

    def printed(self, file: Path) -> Path:
        """The page as it comes out of the printer, as PDF."""
        got = self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        file.write_bytes(base64.b64decode(got["data"]))
        return file

    def close(self) -> None:
        """Close the tab."""
        self.browser.send("Target.closeTarget", targetId=self.target)
