"""A headless Chromium, driven over WebDriver. Debian's packages `chromium` and `chromium-driver` bring both."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
PATIENCE_S = 120
SPECIAL = {"left": "\ue012", "right": "\ue014", "down": "\ue015", "backspace": "\ue003", "escape": "\ue00c"}
"""Keys, as WebDriver writes them."""


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        self._call("url", url=address)

    def run(self, script: str) -> Any:
        """What a JavaScript function's body returns."""
        return self._call("execute/sync", script=script, args=[])

    def press(self, *keys: str) -> None:
        """Type keys by their name in SPECIAL, or by their letter."""
        for key in keys:
            typed = SPECIAL.get(key, key)
            strokes = [{"type": kind, "value": typed} for kind in ("keyDown", "keyUp")]
            self._call("actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def click(self, selector: str) -> None:
        (element,) = self._call("element", using="css selector", value=selector).values()
        self._call(f"element/{element}/click")

    def resize(self, width: int, height: int) -> None:
        """Set the window's size as a phone's would be."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._call("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def screenshot(self) -> bytes:
        return base64.b64decode(_ask(f"{self._session}/screenshot"))

    def errors(self) -> list[str]:
        """What the console has logged since the last call, warnings too."""
        return [entry["message"] for entry in self._call("se/log", type="browser")]

    def _call(self, command: str, **body: Any) -> Any:
        return _ask(f"{self._session}/{command}", body)


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """A browser that saves files to `downloads`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900"]
    options = {
        "binary": CHROMIUM,
        "args": [*arguments, f"--user-data-dir={downloads / 'profile'}"],
        "prefs": {"download.default_directory": str(downloads)},
    }
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    root = f"http://127.0.0.1:{port}"
    with subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL) as driver:
        try:
            _wait_for(root)
            made = _ask(f"{root}/session", {"capabilities": {"alwaysMatch": wanted}})
            session = f"{root}/session/{made['sessionId']}"
            try:
                yield Browser(session)
            finally:
                _ask(session, method="DELETE")
        finally:
            driver.terminate()


def _wait_for(root: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if _ask(f"{root}/status")["ready"]:
                return
        except URLError:
            time.sleep(0.1)
    raise TimeoutError(f"no browser within {PATIENCE_S} s")


def _ask(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}, method=method), timeout=PATIENCE_S) as answer:
        return json.loads(answer.read())["value"]
