"""The head of a report in a browser: python -m docs.pictures.report

Three heads with three seeds on digits, as `make demo` trains them; about a minute. Needs chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from nearest_etf.torchport.training.etf_report import main as etf_report
from nearest_etf.torchport.training.etf_train import main as etf_train

PICTURE = Path(__file__).parent / "report.png"
WINDOW = (1300, 1280)  # width and height in pixels
COLOURS = 64
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        runs, page, shot = (Path(folder) / name for name in ("runs", "report.html", "report.png"))
        sweep = ["--heads", "learned", "fixed", "implicit", "--seeds", "3", "--output", str(runs)]
        if etf_train(["sweep", "digits", "--quiet", *sweep]):
            raise SystemExit("a run failed")
        if etf_report([*map(str, sorted(runs.iterdir())), "--quiet", "--to", str(page)]):
            raise SystemExit("the report failed")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += [f"--user-data-dir={folder}/profile"]
        flags += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
