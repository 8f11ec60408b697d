"""Residual networks on CPUs: the shortcut that works around a defect in oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nearest_etf.torchport.training.backbones.resnet import Block


@pytest.mark.parametrize("in_channels", [8, 16])
def test_a_narrow_shortcut_is_a_strided_convolution(in_channels: int) -> None:
    block = Block(in_channels, 2 * in_channels, stride=2, bottleneck=False)
    images = torch.randn(4, in_channels, 9, 9).to(memory_format=torch.channels_last)
    shortcuts: list[torch.Tensor] = []
    block.downsample.register_forward_hook(lambda module, inputs, output: shortcuts.append(output))
    block(images)
    weight, norm = block.get_parameter("downsample.0.weight"), block.get_submodule("downsample.1")
    expected = norm(nn.functional.conv2d(images.contiguous(), weight, stride=2))
    torch.testing.assert_close(shortcuts[0], expected, rtol=1e-4, atol=1e-5)


def test_narrow_networks_train_in_channels_last_memory() -> None:
    """oneDNN wrote out of bounds here, which killed the process: the test runs in a separate one."""
    script = (
        "import torch; from nearest_etf.torchport.training.backbones.resnet import ResNet;"
        "net = ResNet('resnet18', width=8);"
        "x = torch.randn(16, 3, 64, 64).to(memory_format=torch.channels_last); [net(x).sum().backward() for _ in 'abc']"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "MALLOC_CHECK_": "3"})
