"""Study C: what does the gradient through the solution contribute, given that a batch has the weight α_t?

    python benchmarks/studies/gradient.py --minutes 40    # after study A; repeat until none is left
    python benchmarks/studies/gradient.py --dry-run
    python benchmarks/studies/gradient.py --summary > tables.md

docs/protocol.md has the rules. The implicit head trains on digits with its choice of study A. Factors:

- the gradient on, off, on only in the first fifth of the steps, on only in the last four fifths;
- the floor of α, and the batch size;
- free features in large batches, up to the full batch with α = 1.

Two calls with different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

from typing import Any

from scratch import Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import collapse, comparison, groups, markdown  # type: ignore[import-not-found]

WHEN = ("on", "off", "first fifth", "last four fifths")
SHARE_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
SAMPLES = 10_240  # in ufm-10-large: the full batch
LARGE: dict[str, dict[str, Any]] = {
    "batch 4096": {"batch": 4096},
    "full batch, α = 1": {"batch": SAMPLES, "floor": 1.0},
}

FACTORS = (
    *(Factor(f"gradient {when}", ("implicit",), 20, {"gradient": when}) for when in WHEN),
    *(Factor(f"floor {floor:g}", ("implicit",), 5, {"floor": floor}) for floor in (1e-3, 1e-2, 1e-1)),  # 1e-4: centre
    *(Factor(f"batch {batch}", ("implicit",), 5, {"batch": batch}) for batch in (256, 1024)),  # 64: the centre
    *(
        Factor(f"UFM-10, {name}, {when}", ("implicit",), 5, {**change, "gradient": when}, "ufm-10-large")
        for name, change in LARGE.items()
        for when in ("on", "off")
    ),
)


def tables(rows: Rows) -> str:
    """Differences to the gradient off, epochs to the targets, and the share over the steps."""
    names = {factor.name for factor in FACTORS}
    by_name = groups([row for row in rows if row["factor"] in names], lambda row: row["factor"])
    centre = {name: own for name, own in by_name.items() if name.startswith("gradient")}
    parts = ["**centre**", comparison(centre, "gradient off"), collapse(centre, "gradient off")] if centre else []
    others = {name: own for name, own in by_name.items() if name.startswith(("gradient on", "floor", "batch"))}
    if len(others) > 1:
        parts += ["**floor of α, batch size**", comparison(others, "gradient on"), collapse(others, "gradient on")]
    for name in LARGE:
        large = {key: own for key, own in by_name.items() if key.startswith(f"UFM-10, {name}")}
        if large:
            off = f"UFM-10, {name}, off"
            parts += [f"**UFM-10, {name}**", comparison(large, off), collapse(large, off)]
    return "\n\n".join([*parts, "**Share of the gradient through the solution (α)**, medians", shares(by_name)])


def shares(by_name: dict[str, Rows]) -> str:
    """Medians of `‖g_on − g_off‖/‖g_on‖`, and α, at the steps named in advance."""
    lines = [["", *(f"step {step}" for step in SHARE_STEPS)]]
    for name, rows in by_name.items():
        cells = []
        for step in SHARE_STEPS:
            found = sorted((share, alpha) for row in rows for t, share, alpha in row["shares"] if t == step)
            middle = found[len(found) // 2] if found else None
            cells.append(f"{middle[0]:.2g} ({middle[1]:.2g})" if middle else "–")
        lines.append([name, *cells])
    return str(markdown(lines))


STUDY = Study(__doc__, "gradient.json", FACTORS, tables, share_steps=SHARE_STEPS)

if __name__ == "__main__":
    conduct(STUDY)
