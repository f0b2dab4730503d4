"""Drive a headless Chromium through its DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

CHROMIUM: Final = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
)

PATIENCE: Final = 20.0
"""Seconds to wait for an answer of the browser."""


class Page:
    """A page in the browser, with everything that it has complained about."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._last_id = loop, socket, 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; note events on the way."""
        return self._loop.run_until_complete(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last_id += 1
        own = self._last_id
        await self._socket.write_message(
            json.dumps({"id": own, "method": method, "params": params})
        )
        while True:
            text = await asyncio.wait_for(self._socket.read_message(), PATIENCE)
            message = json.loads(text)
            if message.get("id") == own:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message.get("result", {})
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.complaints.append(text)
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(
                params["entry"]["text"] + " " + params["entry"].get("url", "")
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "assert",
            "warning",
        ):
            self.complaints.append(
                " ".join(str(a.get("value")) for a in params["args"])
            )
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                self.requests.append(url)

    def open(self, url: str, *, width: int = 1200, height: int = 900) -> float:
        """Open a page, wait until it is drawn, and return the seconds that this took."""
        self.resize(width, height)
        start = time.monotonic()
        self.call("Page.navigate", url=url)
        self.wait_for("document.body && document.body.dataset.ready === 'true'")
        self.settle()
        return time.monotonic() - start

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def settle(self) -> None:
        """Wait until two frames are drawn."""
        self.run(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def run(self, code: str) -> Any:
        """Evaluate JavaScript, wait for a promise, and return the value."""
        result = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description"))
        return result["result"].get("value")

    def wait_for(self, condition: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition}; {self.complaints}")
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def hover(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x - 1, y)
        self.mouse("mouseMoved", x, y)
        self.settle()

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.settle()

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        for i in range(1, 6):
            x, y = (a + (b - a) * i / 5 for a, b in zip(start, stop, strict=True))
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", *stop, button="left", clickCount=1)
        self.settle()

    def picture(
        self, path: Path, *, selector: str | None = None, is_whole: bool = True
    ) -> None:
        """Save a picture of the whole page, of its part in the window, or of an element."""
        clip = None
        if selector is not None:
            clip = self.run(
                f"(r => ({{x: r.x + scrollX, y: r.y + scrollY, width: r.width, "
                f"height: r.height, scale: 1}}))(document.querySelector({selector!r})"
                ".getBoundingClientRect())"
            )
        options = {"clip": clip} if clip else {}
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=is_whole, **options
        )
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser_page() -> Iterator[Page]:
    """Start a browser without a network, and yield its page."""
    assert CHROMIUM is not None
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            socket = loop.run_until_complete(_connect(Path(profile)))
            yield Page(loop, socket)
            socket.close()
        finally:
            process.terminate()
            process.wait(timeout=20)
            loop.close()


async def _connect(profile: Path) -> Any:
    """Connect to the first page of a browser that is starting."""
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + PATIENCE
    while not port_file.exists() or not port_file.read_text().strip():
        if time.monotonic() > deadline:
            raise TimeoutError("The browser has not started.")
        await asyncio.sleep(0.05)
    port = port_file.read_text().split()[0]
    while True:
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
        pages = [p for p in json.loads(answer.body) if p["type"] == "page"]
        if pages:
            break
        await asyncio.sleep(0.05)
    return await websocket_connect(
        pages[0]["webSocketDebuggerUrl"], max_message_size=1 << 28
    )
