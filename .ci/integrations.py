"""Run the tests of other libraries beside timm and torchvision: `make test-integrations`.

torchvision needs its matching build of torch, and no package index has one for the CPU build in constraints.txt. These
versions are therefore installed into build/integrations, a separate environment of 6 GB; all others are those of
constraints.txt. Arguments go to pytest, after the files: `python .ci/integrations.py -k timm`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "integrations"
PINS = ("torch==2.14.1", "torchvision==0.29.1", "timm==1.0.31")
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
TESTS = ("tests/torchport/integrations", "tests/torchport/training/backbones")
SPACE = 8 * 2**30  # bytes: the size of the environment, and room to unpack it


def main() -> int:
    python = PLACE / "bin" / "python"
    if not python.exists():
        free = shutil.disk_usage(ROOT).free
        if free < SPACE:
            sys.exit(f"build/integrations needs {SPACE / 1e9:.0f} GB, and {free / 1e9:.1f} GB are free here")
        venv.create(PLACE, with_pip=True)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    own = {pin.partition("==")[0] for pin in PINS}
    kept = [line for line in pins if line.partition("==")[0] not in own]
    (PLACE / "constraints.txt").write_text("\n".join([*kept, *PINS]) + "\n", encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # files of an earlier build would be packed again
    wanted = [*PINS, *TOOLS, f"{ROOT}[export,integrations]"]
    subprocess.run([*pip, "-c", PLACE / "constraints.txt", *wanted], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", ROOT], check=True)
    print("beside", *PINS, flush=True)
    pytest = [python, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    return subprocess.run([*pytest, *TESTS, *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
