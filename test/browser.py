"""A real Chromium without a window, driven through its own protocol over a pipe; no library needed.

with Browser() as browser:
    page = browser.page("http://127.0.0.1:8777/")
    page.wait("document.title == 'hapo review'")
    page.press("j")
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CODES = {" ": "Space", "Enter": "Enter", "Escape": "Escape", "Backspace": "Backspace"}
VIRTUAL = {"Enter": 13, "Escape": 27, "Backspace": 8, "End": 35, "Home": 36}
VIRTUAL |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
MIDDLE = """(() => {
    const found = document.querySelector(%s)?.getBoundingClientRect();
    return found?.width ? [found.x + found.width / 2, found.y + found.height / 2] : null;
})()"""
DEADLINE_S = 100.0


def chromium() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser process; pages are isolated from each other, as two people's would be."""

    def __init__(self, width=1440, height=900):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._ids = itertools.count(1)
        self._buffer = b""
        self.size = {"width": width, "height": height}
        ours, theirs = os.pipe(), os.pipe()  # what it hears, what it says

        def attach():  # Chromium reads from 3 and writes to 4
            heard, said = os.dup(ours[0]), os.dup(theirs[1])
            os.dup2(heard, 3)
            os.dup2(said, 4)

        arguments = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run"]
        arguments += [
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--mute-audio",
        ]
        arguments += [
            "--disable-background-networking",
            "--disable-extensions",
            "--use-gl=disabled",
        ]
        arguments += [f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            [chromium(), *arguments, "about:blank"],
            preexec_fn=attach,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        self.events: list[dict] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method, session=None, **parameters):
        """Send a command and return its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            said = self._read(deadline)
            if said.get("id") == number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']['message']}")
                return said["result"]
            self.events.append(said)

    def _read(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("The browser does not answer.")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise RuntimeError("The browser has ended.")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def page(self, address):
        """A page of a person of its own: other cookies, other storage."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, session["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride", **self.size, deviceScaleFactor=1, mobile=False
        )
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.call("Page.navigate", url=address)
        return page


class Page:
    """One tab."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def wait(self, expression, timeout_s=DEADLINE_S):
        """Until the expression is true; returns its value."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if value := self.evaluate(expression):
                    return value
            except RuntimeError as error:
                if "Cannot read properties" not in str(error) and "context" not in str(error):
                    raise
            if time.monotonic() > deadline:
                text = self.evaluate("document.body.innerText")
                raise TimeoutError(f"Never true: {expression}\n{text[:2000]}\n{self.complaints()}")
            select.select([], [], [], 0.02)

    def press(self, key, shift=False, control=False):
        """Press and release a key, as a person does."""
        modifiers = (8 if shift else 0) | (2 if control else 0)
        code = CODES.get(key) or (f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key)
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        if control:
            text = {}
        event = {"key": key, "code": code, "modifiers": modifiers}
        event["windowsVirtualKeyCode"] = VIRTUAL.get(key, ord(key.upper()[0]))
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def mouse(self, kind, x, y, **more):
        more = {"button": "left", "clickCount": 1, "buttons": 1} | more
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def drag(self, start, end):
        """From (x, y) to (x, y), with the left button."""
        self.mouse("Moved", *start, buttons=0)
        self.mouse("Pressed", *start)
        for part in (0.25, 0.5, 1.0):
            self.mouse("Moved", *(a + (b - a) * part for a, b in zip(start, end, strict=True)))
        self.mouse("Released", *end, buttons=0)

    def click(self, selector):
        """The middle of the first element of a selector."""
        x, y = self.wait(MIDDLE % json.dumps(selector))
        self.drag((x, y), (x, y))

    def complaints(self):
        """What the page's own console and its loader complained about."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            told = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(told["exceptionDetails"]["exception"].get("description", "exception"))
            elif event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            elif event["method"] == "Runtime.consoleAPICalled" and told["type"] == "error":
                found.append(str([each.get("value") for each in told["args"]]))
        return found

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))
