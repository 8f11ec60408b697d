"""Study A: training from scratch. Does the implicit head collapse faster and more steadily than the learned one?

    NEAREST_ETF_DATA=data python benchmarks/studies/from_scratch.py --minutes 40    # repeat until none is left
    python benchmarks/studies/from_scratch.py --dry-run                             # the runs, and their hours
    python benchmarks/studies/from_scratch.py --summary > tables.md                 # from the result files, no training

docs/protocol.md has the rules. The centre is the recipe `digits`; the last ReLU and the data set vary. Each head's rate
and τ (for the linear head rate and weight decay) are chosen separately on digits, CIFAR-10, CIFAR-100 and each of the
unconstrained features models, with a seed that is not reported. A call continues where the last one stopped. Two calls
with different `--heads` and `--json` may run in parallel, one per core.
"""

from __future__ import annotations

from scratch import FOUR, HEADS, Factor, Rows, Study, conduct  # type: ignore[import-not-found]
from scratch_tables import collapse, comparison, groups, tuned  # type: ignore[import-not-found]

MORE = {"cifar100": ("canonical", "implicit-detached", "class-mean")}  # departure 15 of the protocol
FACTORS = (
    Factor("centre", tuple(head for head in HEADS if head != "tight-frame"), 20),
    Factor("before the last ReLU", FOUR, 20, {"signed": True}),
    *(
        Factor(f"data: {data}", FOUR + MORE.get(data, ()), 5, data=data)
        for data in (
            *("cifar10", "ufm-10", "ufm-100", "ufm-200", "ufm-1000"),
            *("cifar100", "fashion-mnist", "mnist"),
        )
    ),
)


def tables(rows: Rows) -> str:
    """Accuracies, epochs to the targets, and the tuning."""
    parts = []
    for factor in FACTORS:
        of_heads = groups(rows, lambda row: row["head"], factor=factor.name)
        if of_heads:
            parts += [f"**{factor.name}**", comparison(of_heads, "learned"), collapse(of_heads, "learned")]
    return "\n\n".join([*parts, "**Tuning**", tuned(rows)])


STUDY = Study(__doc__, "from-scratch.json", FACTORS, tables, tunes=True)

if __name__ == "__main__":
    conduct(STUDY)
