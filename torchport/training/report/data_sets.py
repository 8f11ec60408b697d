"""Runs grouped by evaluation data: only runs evaluated on the same images are compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....common.text import shown
from ..measurement import SPLIT_NAMES
from ..run.reading import Run
from .groups import Group, group_runs
from .labels import check_labels

JUDGED = ("test", "val", "train")  # a run is judged on the first of these splits in its data


@dataclass(frozen=True)
class DataSet:
    """Groups of runs that were judged on the same images of the same classes.

    Attributes
    ----------
    name : str
        Of the data.
    heading : str
        The name, the number of classes, and the images on which the runs are judged; unique in a report.
    groups : tuple of Group
    """

    name: str
    heading: str
    groups: tuple[Group, ...]


def data_sets(runs: Sequence[Run], labels: Sequence[str] = ()) -> list[DataSet]:
    """Runs by data set, in the order in which they are given.

    Parameters
    ----------
    runs : sequence of Run
    labels : sequence of str
        One per group, in the order in which the runs of each are first given; groups are then in this order, too.

    Raises
    ------
    LabelError
        If labels do not fit, see `check_labels`.
    """
    gathered: dict[Any, list[Run]] = defaultdict(list)
    for key, run in zip(_keys(runs), runs, strict=True):
        gathered[key].append(run)
    members = list(gathered.values())
    headings = [_heading(some[0]) for some in members]
    twice = Counter(headings)
    for i, some in enumerate(members):
        if twice[headings[i]] > 1:
            split = _judged_on(some[0])
            found = str(_data(some[0]).get(f"{split}_sha256", ""))[:8] or "none"
            headings[i] += f", fingerprint {found}"
    headings = [f"{heading} ({n})" if n else heading for heading, n in zip(headings, _repeats(headings), strict=True)]
    groups = [group_runs(some) for some in members]
    if labels:
        groups = _labelled(groups, runs, labels)
    names = [shown(some[0].data_name or some[0].settings.get("data", "data")) for some in members]
    return [DataSet(name, head, tuple(some)) for name, head, some in zip(names, headings, groups, strict=True)]


def not_compared(sets: Sequence[DataSet]) -> str:
    """A sentence that different data sets are not compared; empty for one data set.

    >>> not_compared([])
    ''
    """
    if len(sets) < 2:
        return ""
    named = "; ".join(found.heading for found in sets)
    return f"No comparison across data ({named}): accuracies on different images or classes do not rank runs."


def _keys(runs: Sequence[Run]) -> list[Any]:
    """A key for each run, equal for runs that can be compared.

    It holds the fingerprint of the images on which the run is judged. Validation images drawn by the seed differ from
    seed to seed: there it holds their number, and the fingerprint only if two runs of one seed have different images.
    """
    kinds, exact = [], []
    for run in runs:
        data, split = _data(run), _judged_on(run)
        sha, size = data.get(f"{split}_sha256"), data.get(f"{split}_size")
        which = (sha,) if sha and split == "test" else (run.data_name, size)
        kinds.append((*which, split, run.class_names or run.settings.get("num_classes")))
        exact.append((run.seed, sha))
    found: dict[Any, dict[int, set[Any]]] = defaultdict(lambda: defaultdict(set))
    for kind, (seed, sha) in zip(kinds, exact, strict=True):
        found[kind][seed].add(sha)
    mixed = {kind for kind, by_seed in found.items() if any(len(shas) > 1 for shas in by_seed.values())}
    return [(kind, sha if kind in mixed else "") for kind, (_, sha) in zip(kinds, exact, strict=True)]


def _labelled(groups: Sequence[Sequence[Group]], runs: Sequence[Run], labels: Sequence[str]) -> list[list[Group]]:
    position = {id(run): i for i, run in enumerate(runs)}
    first = {id(group): min(position[id(run)] for run in group.runs) for some in groups for group in some}
    ordered = sorted((group for some in groups for group in some), key=lambda group: first[id(group)])
    names = check_labels(labels, [group.label for group in ordered])
    named = {id(group): replace(group, label=name) for group, name in zip(ordered, names, strict=True)}
    return [[named[id(group)] for group in ordered if any(group is one for one in some)] for some in groups]


def _heading(run: Run) -> str:
    """As in "digits: 10 classes, 360 test images"."""
    data, split = _data(run), _judged_on(run)
    parts = [f"{len(run.class_names)} classes"] if run.class_names else []
    parts += [f"{data[f'{split}_size']} {SPLIT_NAMES[split]} images"] if f"{split}_size" in data else []
    name = shown(run.data_name or run.settings.get("data", "data"))
    return f"{name}: {', '.join(parts)}" if parts else name


def _repeats(headings: Sequence[str]) -> list[int]:
    """For each heading that several data sets share, its number among them, from 1; else 0."""
    return [
        headings[: i + 1].count(heading) if headings.count(heading) > 1 else 0 for i, heading in enumerate(headings)
    ]


def _judged_on(run: Run) -> str:
    return next((split for split in JUDGED if f"{split}_size" in _data(run)), "train")


def _data(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.config.get("data", {})
    return found
