"""Headless Chromium, driven over a pair of pipes by its DevTools protocol: no driver package and no port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from sanitizer import environment_without_sanitizer, reduced

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}  # windowsVirtualKeyCode
MOST_FRAMES = reduced(1200, sanitized=12000)  # 20 seconds, but not while the machine holds the browser back
SHIFT = 8  # a modifier bit of Input.dispatchKeyEvent

Json = dict[str, Any]


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class PageError(AssertionError):
    """A script on the page failed."""


class Browser:
    """One browser process with one page. Not thread-safe."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="chromium")
        commands, self._commands = _pipe()
        self._answers, answers = _pipe()
        arguments = [
            program,
            "--headless",
            "--no-sandbox",  # it cannot be had by root; all pages are our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
        ]
        # The browser reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4)]
        actions += [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (1, 2)]
        environment = environment_without_sanitizer()
        self._process = os.posix_spawn(program, arguments, environment, file_actions=actions, setpgroup=0)
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._last_id = 0
        self.events: list[Json] = []
        target = self._call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._commands)
        os.close(self._answers)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        shutil.rmtree(self._profile, ignore_errors=True)  # its children may still be ending

    # -- The protocol.

    def _call(self, method: str, params: Json | None = None, *, session: str | None = "page") -> Json:
        self._last_id += 1
        message: Json = {"id": self._last_id, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != self._last_id:
                self.events.append(answer)
            elif "error" in answer:
                raise PageError(f"{method}: {answer['error']}")
            else:
                result: Json = answer["result"]
                return result

    def _receive(self) -> Json:
        while b"\0" not in self._rest:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: Json = json.loads(message)
        return parsed

    def problems(self) -> list[str]:
        """What the browser complained about since the last call: exceptions, console errors, blocked content."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        self.events.clear()
        return found

    # -- What a person does.

    def open(self, url: str) -> None:
        self.evaluate("window.isOld = true")
        self._call("Page.navigate", {"url": url})
        self.wait_for("!window.isOld && document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited when it is a promise."""
        params = {"expression": script, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        params["allowUnsafeEvalBlockedByCSP"] = False
        while True:
            try:
                result = self._call("Runtime.evaluate", params)
                break
            except PageError as error:  # the page was left meanwhile: ask the new one
                if "context was destroyed" not in str(error) and "navigated" not in str(error):
                    raise
        if "exceptionDetails" in result:
            raise PageError(result["exceptionDetails"].get("exception", {}).get("description", str(result)))
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Returns at the first frame in which an expression is true; gives up after some frames without."""
        found = self.evaluate(
            f"new Promise((resolve) => {{ let frames = {MOST_FRAMES}; const look = () => {{ const found = {condition};"
            "if (found || !frames--) resolve(Boolean(found)); else requestAnimationFrame(look); }; look(); })"
        )
        assert found, f"never: {condition}"

    def text(self, selector: str) -> str:
        """What is seen of the first element that a selector names."""
        text: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    def click(self, selector: str) -> None:
        """Presses the mouse at the middle of an element: it must be visible and not covered."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}), b = e.getBoundingClientRect();"
            "const x = b.x + b.width / 2, y = b.y + b.height / 2, top = document.elementFromPoint(x, y);"
            "return {x, y, hit: e === top || e.contains(top)}; })()"
        )
        assert box["hit"], f"{selector} cannot be clicked"
        for kind in ("mousePressed", "mouseReleased"):
            position = {"x": box["x"], "y": box["y"], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", {"type": kind, **position})

    def type(self, text: str) -> None:
        self._call("Input.insertText", {"text": text})

    def press(self, key: str, modifiers: int = 0) -> None:
        params: Json = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        if key == "Enter":
            params["text"] = "\r"
        self._call("Input.dispatchKeyEvent", {"type": "keyDown", **params})
        self._call("Input.dispatchKeyEvent", {"type": "keyUp", **params})

    def screen(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, path: Path | None = None) -> bytes:
        """The page as PNG."""
        png = base64.b64decode(self._call("Page.captureScreenshot")["data"])
        if path:
            path.write_bytes(png)
        return png


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are above 9, so that they are not among those that the browser gets."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
