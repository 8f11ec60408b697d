"""Provenance: command, commit, versions and hardware, recorded in run folders and benchmark results."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("nearest-etf", "torch", "numpy", "scipy", "torchvision", "timm")  # whose versions can change results


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's model, from /proc/cpuinfo on Linux and from `platform` on other systems."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine() or "cpu")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Command, commit, versions and hardware, as plain values.

    Parameters
    ----------
    device : str
        The device of the computation, as torch names it: "cpu", "cuda:0", …
    """
    installed = {distribution.name for distribution in metadata.distributions()}
    torch: Any = sys.modules.get("torch")  # only if the caller has imported it
    return {
        "command": sys.argv,
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in PACKAGES if name in installed},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else available_cores(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def commit() -> str | None:
    """The commit of this code if it runs from a checkout of its own repository, else None.

    A copy in another repository, such as a committed virtual environment, has no commit.
    """
    source = Path(__file__).resolve()  # in an editable install the package is a tree of links into the checkout
    listing = ["git", "-C", str(source.parent), "ls-files", "--full-name", source.name]
    try:
        place = subprocess.run(listing, capture_output=True, text=True, check=False).stdout.strip()
        ours = place == "common/machine.py"
        describe = ["git", "-C", str(source.parent), "describe", "--always", "--dirty"]
        found = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() if ours else ""
    except OSError:  # no git
        return None
    return found or None
