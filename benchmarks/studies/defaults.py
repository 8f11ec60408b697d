"""Study D: which start, δ, formulation, averaging and τ should be the package's defaults?

    NEAREST_ETF_DATA=data python benchmarks/studies/defaults.py --minutes 40    # after A; repeat until none is left
    python benchmarks/studies/defaults.py --dry-run
    python benchmarks/studies/defaults.py --summary > tables.md

docs/protocol.md has the rules. The implicit head trains on digits with its choice of study A. One setting at a time has
other values, each of which is compared with the package's present default. τ varies for the learned and the fixed head,
too. Two calls with different `--seeds` and `--json` may run in parallel.
"""

from __future__ import annotations

from scratch import Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import comparison, groups  # type: ignore[import-not-found]

IMPLICIT = ("implicit",)
STARTS = {
    "random": {"options": {"initial": "random"}},
    "feature-polar": {"start": "feature-polar"},
    "aligned": {"start": "aligned"},
}
TEMPERATURES: tuple[float | str | None, ...] = (None, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, "learned")
DEFAULT = "default"


def name_of(temperature: float | str | None) -> str:
    return DEFAULT if temperature is None else f"{temperature:g}" if isinstance(temperature, float) else temperature


FACTORS = (
    Factor("centre", IMPLICIT, 20),
    *(Factor(f"start: {name}", IMPLICIT, 20, change) for name, change in STARTS.items()),
    *(Factor(f"δ: {delta:g}", IMPLICIT, 20, {"options": {"delta": delta}}) for delta in (0.0, 1e-4, 1e-2, 1e-1)),
    Factor("formulation: gauge-free", IMPLICIT, 20, {"options": {"formulation": "gauge-free"}}),
    Factor("averaging: class", IMPLICIT, 20, {"options": {"averaging": "class"}}),
    *(Factor(f"τ: {name_of(t)}", ("learned", "fixed", "implicit"), 20, {"temperature": t}) for t in TEMPERATURES),
    *(
        Factor(f"CIFAR-100, τ: {name_of(t)}", IMPLICIT, 5, {"temperature": t}, "cifar100")
        for t in (None, 10.0, 20.0, 30.0, 40.0, 60.0)
    ),
    Factor(
        "CIFAR-100, averaging: class", IMPLICIT, 5, {"temperature": None, "options": {"averaging": "class"}}, "cifar100"
    ),
)


def tables(rows: Rows) -> str:
    """Every value against the present default: the centre, and for τ the default for the number of classes."""
    parts = []
    for title, begin, opponent in (
        ("start, δ, formulation, averaging", ("centre", "start", "δ", "formulation", "averaging"), "centre"),
        ("τ", ("τ",), f"τ: {DEFAULT}"),
        ("CIFAR-100", ("CIFAR-100",), f"CIFAR-100, τ: {DEFAULT}"),
    ):
        for head in dict.fromkeys(row["head"] for row in rows):
            own = [row for row in rows if row["factor"].startswith(begin)]
            by_name = groups(own, lambda row: row["factor"], head=head)
            if by_name:
                parts += [f"**{title}, {head}**", comparison(by_name, opponent)]
    return "\n\n".join(parts)


STUDY = Study(__doc__, "defaults.json", FACTORS, tables, curves=False)

if __name__ == "__main__":
    conduct(STUDY)
