"""The rows of docs/reliability.md, made from the results: `python -m tests.faults.tables` prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SCRIPTS = {
    "kill-points": "jobs",
    "surroundings": "faults",
    "command-lines": "commands",
    "mutations-run": "kinds",
    "mutate-files": "kinds",
    "long-run": "scenarios",
}
NAMES = {
    "png": "PNG",
    "jpeg": "JPEG",
    "tiff": "TIFF",
    "gif": "GIF",
    "webp": "WebP",
    "bmp": "BMP",
    "ppm": "PPM",
    "idx-gz": "idx, gzipped",
    "cifar-binary": "CIFAR, binary",
    "cifar-python": "CIFAR, Python",
    "stl10": "STL-10",
    "onnx": "ONNX without sidecar",
    "onnx-verified": "ONNX with sidecar",
    "sidecar": "sidecar of a model",
    "metadata": "metadata of a model",
}


def result(name: str) -> dict[str, Any]:
    """What a script has written."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def rows() -> list[str]:
    """Every row that comes from a result, in the order of the page."""
    kills, around, lines, run, strangers, long = (result(name)[entry] for name, entry in SCRIPTS.items())
    counts = {
        "mutate_files.py": f"{sum(x['tries'] for x in strangers):,} of {len(strangers)} kinds",
        "mutations.py": f"{sum(x['tries'] for x in run):,} of {len(run)} kinds",
        "kill_points.py": f"{sum(x['tried'] for x in kills)} points of {len(kills)} commands",
        "command_lines.py": str(sum(x["tries"] for x in lines)),
        "long_run.py": f"{len(long)} runs",
    }
    summary = [f"| {count} | … | `{script}` |" for script, count in counts.items()]
    summary += [f"| {x['fault']} | {x['tried']} | … | `surroundings.py` |" for x in around]
    return [
        *summary,
        *(row(x["job"], x["tried"], len(x["torn"]), len(x["lost"]), words(x["went_on"])) for x in kills),
        *(
            row(
                x["fault"],
                x["tried"],
                "all" if x["every"] == 1 else f"one in {x['every']}",
                *(x["went_through"], len(x["torn"]), len(x["lost"]), len(x["unclear"])),
            )
            for x in around
        ),
        *(
            row(
                *(x["prog"], x["tries"], *(x["statuses"].get(status, 0) for status in "012"), x["interrupted"]),
                len(x["traces"]) + len(x["wrong_ends"]) + len(x["too_long"]),
            )
            for x in lines
        ),
        *(of_a_run(x) for x in run),
        *(
            row(
                *(NAMES.get(x["kind"], x["kind"]), f"{x['tries']:,}", f"{x['refused']:,}", f"{x['read']:,}"),
                *(len(x["foreign"]), x["changed"], len(x["died"]) + len(x["slow"])),
                *(f"{x['megabytes']:.0f} MB", f"{x['seconds']:.2f} s"),
            )
            for x in strangers
        ),
        *(of_long_work(x) for x in long),
    ]


def of_a_run(x: dict[str, Any]) -> str:
    sealed = "read as it was" in x
    read = f"{x['read as it was']:,} as it was" if sealed else f"{x['read']:,}"
    bad = len(x["not ours"]) + len(x["died"]) + len(x["slow"])
    name, other = x["fault"].partition(": ")[0], x["other contents"] if sealed else "—"
    return row(name, f"{x['tries']:,}", f"{x['refused']:,}", read, other, bad, f"{x['seconds']:.2f} s")


def of_long_work(x: dict[str, Any]) -> str:
    stopped = x["stopped"].partition(": ")[2].partition(":")[0]
    outcome = f"stopped: {stopped}" if stopped else f"{100 * x['accuracy']:.1f} % of the training images"
    memory = "—" if stopped else f"{round(x['megabytes_per_1000_steps'], 3) + 0.0:.3f} MB"
    departure = f"{x['largest_departure']:.1e}" if x["largest_departure"] else "—"
    error = f"{x['etf_error']:.0e}" if x["etf_error"] else "—"
    return row(x["scenario"], f"{x['steps']:,}", memory, departure, error, outcome)


def words(ways: dict[str, int]) -> str:
    return ", ".join(f"{way}: {count}" for way, count in ways.items())


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def minutes() -> float:
    """What all scripts together take of one core."""
    return sum(float(result(name)["cpu_seconds"]) for name in SCRIPTS) / 60


if __name__ == "__main__":
    print(*rows(), sep="\n")
    print(f"all together {minutes():.0f} minutes of one core")
