"""A model card, the README.md of a model on a hub: the model, its data, its figures and its licence.

A card begins with the hub's fields, as YAML between two lines of dashes; the values are JSON, which is valid YAML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

LISTED_CLASSES = 50

GEOMETRY = {
    "etf_error": "distance of W's Gram matrix from a simplex ETF's (NC2)",
    "tightness_error": "distance of W from a tight frame",
    "norm_spread": "spread of the lengths of W's rows, std/mean",
    "largest_cosine": "largest cosine between two classes' weights",
    "cosine_bound": "lower bound on the largest cosine",
    "certificate_gap": "relative gap to the best ETF for the class means",
}

LOADING = """```python
from nearest_etf.torchport.integrations.hub import from_pretrained

model = from_pretrained({folder!r}{backbone})  # in eval mode
logits = model(images)
```"""


def model_card(
    name: str,
    config: Mapping[str, Any],
    *,
    data: str = "",
    metrics: Mapping[str, float] | None = None,
    certificate: Mapping[str, Any] | None = None,
    licence: str = "",
    task: str = "",
) -> str:
    """The text of a model card.

    Parameters
    ----------
    name : str
    config : mapping
        As `hub.save_pretrained` writes it.
    data : str
        The training data.
    metrics : mapping
        Figures by name; `val_accuracy` and `test_accuracy` become results that the hub lists.
    certificate : mapping
        The classifier's geometry, as `export` writes it; the card lists the numbers that `GEOMETRY` names.
    licence : str
        An identifier of the hub's list, as in "apache-2.0".
    task : str
        The hub's name of the task, such as "image-classification".

    Examples
    --------
    >>> config = {"num_features": 8, "num_classes": 3, "head": {"kind": "fixed"}, "run": None, "class_names": []}
    >>> print(model_card("shapes", config, licence="mit").partition("tags")[0].rstrip())
    ---
    library_name: "nearest-etf"
    license: "mit"
    """
    metrics = {k: v for k, v in (metrics or {}).items() if math.isfinite(v)}
    fields: dict[str, Any] = {
        "library_name": "nearest-etf",
        "license": licence,
        "tags": ["neural-collapse", "simplex-etf"],
    }
    fields |= {"pipeline_tag": task, "datasets": [data] if data and " " not in data else []}
    if results := _results(data, metrics, task):
        fields["model-index"] = [{"name": name, "results": results}]
    kind, K, d = config["head"]["kind"], config["num_classes"], config["num_features"]
    sections = [
        f"# {name}",
        f"A classifier of {K} classes on {d} features, with the **{kind}** head of nearest-etf "
        "([Guiding Neural Collapse](https://arxiv.org/abs/2411.01248)).",
        LOADING.format(folder=name, backbone="" if config["run"] else ", backbone"),
        f"## Data\n\n{_data(config, data)}",
        _table("Figures", metrics, {}) or "## Figures\n\nNone were recorded.",
        _table("Geometry of the classifier", certificate or {}, GEOMETRY),
        f"## Classes\n\n{_classes(config['class_names'], K)}",
        f"## Licence\n\n{licence or 'None was stated: ask the author before you use this model.'}",
    ]
    header = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value)
    return f"---\n{header}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _results(data: str, metrics: Mapping[str, float], task: str) -> list[dict[str, Any]]:
    """Accuracies on held-out data in the hub's form, which needs a task and a data set."""
    if not (data and task):
        return []
    return [
        {
            "task": {"type": task},
            "dataset": {"name": data, "type": data, "split": split},
            "metrics": [{"type": "accuracy", "value": round(metrics[f"{split}_accuracy"], 6)}],
        }
        for split in ("val", "test")
        if f"{split}_accuracy" in metrics
    ]


def _data(config: Mapping[str, Any], data: str) -> str:
    text = f"Trained on {data}." if data else "Not recorded."
    if run := config["run"]:
        height, width, channels = run["image_shape"]
        text += f" Images of {height}×{width} pixels and {channels} channel(s), scaled to 0…1"
        text += f", minus {run['mean']} and divided by {run['std']}." if run.get("mean") else "."
    return text


def _table(heading: str, figures: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Figures as rows; with `words`, only those that it names. Empty without figures."""
    names = [name for name in (words or figures) if _is_number(figures.get(name))]
    rows = [f"| {words.get(name, name)} | {figures[name]:.4g} |" for name in names]
    return "\n".join([f"## {heading}", "", "| | |", "|---|---|", *rows]) if rows else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _classes(names: Sequence[str], count: int) -> str:
    if not names:
        return f"Numbered 0…{count - 1}."
    listed = ", ".join(names[:LISTED_CLASSES])
    return (
        f"{listed} and {len(names) - LISTED_CLASSES} more, see config.json." if len(names) > LISTED_CLASSES else listed
    )
