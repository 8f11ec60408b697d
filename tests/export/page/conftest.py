"""Chromium, controlled by its DevTools protocol over a pipe, and pages for it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nearest_etf.common.photo import PhotoTransform
from nearest_etf.export import export_onnx, fit_ood
from nearest_etf.export.page.runtime import FILE
from nearest_etf.torchport import Classifier, FixedETFHead
from nearest_etf.torchport.training.data.download import data_root

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)
# DevTools reads from file descriptor 3 and writes to 4: the launcher moves the two descriptors of its arguments there.
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 120  # seconds
AWKWARD = ("</script><script>alert(1)</script>", "<!--", "\"&'$x$", "{{ 1 }}", "é\u2028猫", "W" * 60)


class Chromium:
    """A headless browser with one open page."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        ends = [str(to_browser), str(from_browser)]
        command = [sys.executable, "-c", LAUNCHER, *ends, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._sent, self._read, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write(message)
        while (answer := self._receive()).get("id") != self._sent:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            more = os.read(self._in, 2**16) if ready else b""
            assert more, "chromium does not respond"
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Open a page from the disk, and wait until its network has started."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete' && 'ready' in document.body.dataset")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"{condition} does not come true: {self.evaluate('document.body.innerText')}"
            time.sleep(0.05)

    def ask(self, function: str, files: Sequence[Path]) -> list[Any]:
        """The results of a function of the page for each of these image files."""
        contents = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
        return self.evaluate(f"""(async () => {{
            const answers = [];
            for (const [name, letters] of {json.dumps(contents)}) {{
                const file = new File([Uint8Array.from(atob(letters), (x) => x.charCodeAt(0))], name);
                answers.push(await {function}(file).then((x) => x.length ? [...x] : x, (error) => error.message));
            }}
            return answers; }})()""")

    def choose(self, file: Path) -> None:
        """Choose a file in the page's file input."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def press(self, *keys: str) -> None:
        """Press keys, by their names."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, *points: tuple[float, float]) -> None:
        """Draw a line through points of the window with the mouse."""
        (x, y), last = points[0], points[-1]
        self("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", clickCount=1)
        for x, y in points[1:]:
            self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self("Input.dispatchMouseEvent", type="mouseReleased", x=last[0], y=last[1], button="left", clickCount=1)

    def screenshot(self, target: Path) -> None:
        """The whole page as PNG."""
        picture = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        target.write_bytes(base64.b64decode(picture))

    def requests(self) -> list[str]:
        """Addresses that the page requested, except its own and those of its blobs and data."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "blob:", "data:"))]

    def complaints(self) -> list[str]:
        """Errors and warnings of the page, and violations of its security policy."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)  # which ends it
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    chromium = Chromium(tmp_path_factory.mktemp("chromium") / "profile")
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def runtime_is_here() -> None:
    """Skip tests that need onnxruntime-web if it has not been downloaded: tests use no network."""
    if not (data_root() / FILE).is_file():
        pytest.skip(f"{data_root() / FILE} is missing (etf-export --page downloads it)")


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights on 12×10 pixels in colour, with awkward names of classes and data."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 10 * 8, 16))
    model = Classifier(backbone, FixedETFHead(16, len(AWKWARD), temperature=12.0)).eval()
    noise, labels = torch.randn(120, 3, 12, 10), torch.arange(120) % len(AWKWARD)
    with torch.no_grad():
        features = model.head.normalise(backbone(noise)).numpy()
    weight, bias = model.head.weight.numpy(), model.head.bias.numpy()
    ood = fit_ood("neco", features, labels.numpy(), features, weight, bias, share=0.5)
    path = tmp_path_factory.mktemp("colour") / "colour.onnx"
    export_onnx(
        model,
        path,
        image_shape=(12, 10, 3),
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.25, 0.3],
        class_names=AWKWARD,
        layout="NCHW",
        ood=ood,
        metadata={
            "transform": PhotoTransform(12, 10).to_dict(),
            "data": AWKWARD[0],
            "backbone": AWKWARD[1],
            "licence": AWKWARD[0],
        },
    )
    return path
