"""Run the tests with the oldest versions that pyproject.toml admits: `make test-oldest`.

They are installed into build/oldest, which is made anew; packages without a lower bound are the newest that fit.
Export asks for a newer torch than training, and for newer packages than deployment: all tests run with what export asks
for, all but those of export with the torch of training, and those of deployment with its own versions. A pin that is
given takes the place of the bound: `make test-oldest PINS="torch==2.13.0+cpu"`, where each oldest torch is a download
of several gigabytes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "oldest"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "autograd", "mpmath", "threadpoolctl", "pymanopt", "geoopt")
# What types and other libraries are checked with has bounds of its own.
LEFT_OUT = ("--ignore=tests/test_typing.py", "-k", "not integrations")
OF_DEPLOYMENT = (
    "tests/export/test_contents.py",
    "tests/export/test_earlier_versions.py",
    "tests/faults/test_mutate_files.py",
)


def oldest(given: list[str], extras_wanted: tuple[str, ...]) -> list[str]:
    """A pin for every requirement of these extras with a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(entry for name in extras_wanted for entry in extras[name])]
    bounds = (re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement) for requirement in wanted)
    pins = {bound[1].lower(): bound[2] for bound in bounds if bound}
    pins |= dict(pin.lower().split("==", 1) for pin in given)
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def main() -> int:
    pins = oldest(sys.argv[1:], ("train", "export"))
    print("oldest versions:", *pins, flush=True)
    venv.create(PLACE, clear=True, with_pip=True)  # two versions of torch share files of CUDA, which pip does not mend
    python = PLACE / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pytest = [python, "-m", "pytest", "-q", *LEFT_OUT]
    in_parallel = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    (PLACE / "constraints.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # files of an earlier build would be packed again
    subprocess.run([*pip, "-c", PLACE / "constraints.txt", f"{ROOT}[export]", *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", ROOT], check=True)
    whole = subprocess.run([*pytest, *in_parallel], cwd=ROOT, check=False)
    trained = [pin for pin in oldest(sys.argv[1:], ("train",)) if pin.startswith("torch==")]
    print("oldest version of training:", *trained, flush=True)
    subprocess.run([*pip, *trained], check=True)
    without_export = subprocess.run([*pytest, *in_parallel, "--ignore=tests/export"], cwd=ROOT, check=False)
    # Deployment has older bounds than export: files that were exported before are opened with these.
    deployed = oldest(sys.argv[1:], ("deploy",))
    print("oldest versions of deployment:", *deployed, flush=True)
    subprocess.run([*pip, "--no-deps", *deployed], check=True)
    opened = subprocess.run([*pytest, *OF_DEPLOYMENT], cwd=ROOT, check=False)
    return whole.returncode or without_export.returncode or opened.returncode


if __name__ == "__main__":
    sys.exit(main())
