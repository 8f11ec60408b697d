"""The README: its example runs, its links exist, and its figures are those of the evidence."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(example, names)
    assert names["logits"].shape == (64, 10)
    assert torch.isfinite(names["loss"])


def test_every_linked_file_exists() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (root / target).exists(), target


def test_the_differences_are_those_of_the_evidence() -> None:
    """Another test compares the page of the evidence with its result files."""
    evidence = (Path(__file__).parent.parent / "docs" / "evidence.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| (centre, \d+ epochs \| implicit − \w+) \| \+(\d\.\d) \[[^|]*\| better \|", evidence, re.M)
    )
    words = (
        r"by (\S+) points after 4 epochs and by (\S+) after 20\. "
        r"Against a learned head that starts at the class means it gains (\S+) and (\S+) points\."
    )
    given = re.search(words, " ".join(README.split()))
    assert given is not None
    settings = [f"centre, {n} epochs | implicit − {other}" for other in ("linear", "learned") for n in (4, 20)]
    assert list(given.groups()) == [rows[setting] for setting in settings]
    (fixed,) = re.findall(r"^\| fixed − linear \| data: cifar100 \| \+(\d\.\d) \[[^|]*\] better;", evidence, re.M)
    assert f"by {fixed} points, and the nearest one does not" in " ".join(README.split())
