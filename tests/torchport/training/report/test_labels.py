"""Labels: the shortest that tell groups apart, letters if those are long, a user's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from nearest_etf.common.text import shortened, shown
from nearest_etf.torchport.heads.temperature import default_temperature
from nearest_etf.torchport.training.report.groups import group_runs
from nearest_etf.torchport.training.report.labels import LabelError, check_labels, short_labels
from nearest_etf.torchport.training.report.words import verdict
from nearest_etf.torchport.training.run.reading import read_run

HOSTILE = ["two\nlines", "\x1b[31mred", "a\udcffb", "x" * 200, "猫と犬", "<script>", ""]


def test_a_label_names_only_the_settings_it_needs() -> None:
    grid = list(itertools.product(["learned", "implicit"], [5.0, 20.0], [0.1, 0.01]))
    settings = [{"momentum": lr * 9, "lr": lr, "temperature": tau, "gradient": True} for _, tau, lr in grid]
    labels = short_labels([head for head, _, _ in grid], settings)
    assert labels[0] == "learned · τ=5 · lr 0.1"
    assert len(set(labels)) == 8


@pytest.mark.parametrize("count", [2, 30])
def test_letters_where_phrases_are_long(count: int) -> None:
    settings = [{"backbone": f"timm:a_network_with_a_very_long_name.{i}"} for i in range(count)]
    labels = short_labels(["implicit"] * count, settings)
    assert labels[:2] == ["A · implicit", "B · implicit"]
    assert len(set(labels)) == count
    assert labels[-1] == ("B · implicit" if count == 2 else "AD · implicit")


def test_many_settings_at_once() -> None:
    """Groups that only four settings tell apart have letters."""
    grid = list(itertools.product([0.0, 1.0], repeat=4))
    labels = short_labels(["fixed"] * 16, [dict(zip("abcd", values, strict=True)) for values in grid])
    assert labels == [f"{letter} · fixed" for letter in "ABCDEFGHIJKLMNOP"]


def test_values_that_look_the_same_have_letters() -> None:
    assert short_labels(["fixed"] * 2, [{"recipe x": "a\nb"}, {"recipe x": "a b"}]) == ["A · fixed", "B · fixed"]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["a"], "--labels has 1 of the 2 names that the runs need: .*in this order: learned and implicit"),
        (["a", "b", "c"], "--labels has 3 of the 2"),
        (["a", " a\n"], "--labels has 'a' twice"),
        (["a", " "], "--labels has an empty name"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], found: str) -> None:
    with pytest.raises(LabelError, match=found):
        check_labels(labels, ["learned", "implicit"])


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_shown_on_one_aligned_line(name: str) -> None:
    text = shown(name)
    assert text
    assert "\n" not in text
    assert "\x1b" not in text
    text.encode("utf-8")
    assert len(shortened(name, 12)) <= 12


def test_the_default_temperature_and_the_same_number_are_one_group(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path, "implicit", 0)
    other = write_run(tmp_path, "implicit", 1, temperature=default_temperature(4))
    third = write_run(tmp_path, "implicit", 1, temperature=5)
    assert [group.label for group in group_runs([read_run(run), read_run(other)])] == ["implicit"]
    labels = [group.label for group in group_runs([read_run(run), read_run(third)])]
    assert labels == ["implicit · τ=5", f"implicit · τ={default_temperature(4):g}"]


def test_copies_of_a_run_do_not_count_as_seeds(write_run: Callable[..., Path], tmp_path: Path) -> None:
    copies = [read_run(write_run(tmp_path / name, "fixed", 0)) for name in "ab"]
    (group,) = group_runs(copies)
    assert group.extent == "2 runs of one seed"
    assert ", 2 runs of one seed." in verdict(group)
    (group,) = group_runs([copies[0], read_run(write_run(tmp_path, "fixed", 1))])
    assert group.extent == "2 seeds"
