"""Headless Chromium, driven over the DevTools protocol with the standard library."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.test_evaluation_report_browser import FLAGS

__all__ = ["Page"]

PATIENCE = 120
"""Seconds after which a condition counts as never met; no test takes the time of anything."""
LAUNCH = "import os, sys; s = int(sys.argv[1]); os.dup2(s, 3); os.dup2(s, 4); os.execv(sys.argv[2], sys.argv[2:])"
"""The browser reads its commands from descriptor 3 and answers on 4."""


class Page:
    """A tab, driven over the DevTools protocol."""

    def __init__(self, chromium: str, profile: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        flags = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(theirs.fileno()), chromium, *flags],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._buffer = b""
        self._count = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = {}
        try:
            self.call("Browser.close")
        finally:
            self._socket.close()
            self._process.wait(PATIENCE)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters, **self._session}
        self._socket.sendall(json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                received = self._socket.recv(1 << 20)
                assert received, "the browser is gone"
                self._buffer += received
            raw, _, self._buffer = self._buffer.partition(b"\0")
            message: dict[str, Any] = json.loads(raw)
            if message.get("id") == self._count:
                assert "error" not in message, (method, message)
                return dict(message["result"])
            self.events.append(message)

    def get(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found)
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := self.get(expression)):
            assert time.monotonic() < end, f"never: {expression}\n{self.get('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def on(self, selector: str, script: str) -> Any:
        """Run it with the element as `e`."""
        return self.get(f"((e) => {{ {script} }})(document.querySelector({json.dumps(selector)}))")

    def text(self, selector: str) -> str:
        """What the page shows; for `pre`, what it would show when open."""
        return str(self.on(selector, "return e.matches('pre') ? e.textContent : e.innerText"))

    def open_all(self) -> None:
        self.get("document.querySelectorAll('details').forEach((e) => { e.open = true; })")

    def click(self, selector: str) -> None:
        self.on(selector, "e.scrollIntoView({block: 'center'});")
        at = self.on(
            selector, "const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2};"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def put(self, selector: str, value: str) -> None:
        """Replace what a control holds, as typing or choosing does."""
        tell = "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));"
        self.on(selector, f"e.value = {json.dumps(value)}; {tell}")

    def key(self, name: str, code: int, text: str = "") -> None:
        common = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            self.key("Tab", 9)
            if self.get(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    def judge(self) -> str:
        """Press the button; the verdict's box."""
        self.click("#submit")
        self.wait("!document.querySelector('#verdict').innerText.startsWith('Judging')")
        return self.text("#verdict")

    def stream(self, mode: str) -> str:
        """Run the demo to its end; the box that tells how it ended."""
        self.put("#mode", mode)
        self.put("#rate", "200")
        self.click("#start")
        self.wait("document.querySelector('#meter-said').innerText.includes('Never released')")
        return self.text("#ended")

    def entries(self) -> list[dict[str, Any]]:
        """The console's errors and warnings: exceptions, violations of the policy, what scripts said."""
        self.get("0")
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        thrown = [e["params"] for e in self.events if e["method"] in kinds]
        return thrown + [e for e in logged if e["level"] in ("error", "warning")]
