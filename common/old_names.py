"""Earlier names of settings, checkpoint entries and head buffers, and their present names.

The keys of the tables are the names of version 0.1.0. Every reader of settings, run folders or state dicts translates
names by these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {"optimiser": "optimizer", "accumulation": "grad_accum_steps"}
CHECKPOINT_KEYS = {"optimiser": "optimizer"}
BUFFERS = {
    "means.means": "running.class_means",
    "means.global_mean": "running.global_mean",
    "means.seen": "running.batches",
    "means.steps": "running.steps",
}


def present_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their present names.

    >>> present_settings({"optimiser": "sgd", "lr": 0.1})
    {'optimizer': 'sgd', 'lr': 0.1}
    """
    return {SETTINGS.get(name, name): value for name, value in values.items()}


def present_checkpoint(contents: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with its keys, its settings and its model's buffers by their present names."""
    present = {CHECKPOINT_KEYS.get(key, key): value for key, value in contents.items()}
    present["settings"] = present_settings(present["settings"])
    present["model"] = {
        present_buffer(key) if key.startswith("head.") else key: value for key, value in present["model"].items()
    }
    return present


def present_buffer(key: str) -> str:
    """The present name of a key of the state dict of a head, or of a model with a head.

    >>> present_buffer("head.means.means"), present_buffer("means.steps"), present_buffer("head.weight")
    ('head.running.class_means', 'running.steps', 'head.weight')
    """
    for old, present in BUFFERS.items():
        if key == old or key.endswith(f".{old}"):
            return key.removesuffix(old) + present
    return key
