"""A convolutional network for small images, and a multilayer perceptron."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3×3 convolutions, halving the image after the first two stages, then the mean over positions.

    Parameters
    ----------
    channels : int
        Of the images: 1 or 3.
    num_features : int
        d; the earlier layers have a quarter and half as many channels.
    signed : bool
        Leave out the last ReLU.

    Examples
    --------
    >>> import torch
    >>> SmallCNN(channels=1, num_features=64)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 64])
    """

    def __init__(self, channels: int, num_features: int = 128, *, signed: bool = False) -> None:
        super().__init__()
        self.num_features = num_features
        quarter, half = max(1, num_features // 4), max(1, num_features // 2)

        def stage(in_channels: int, out_channels: int) -> list[nn.Module]:
            # Small sets have few steps per epoch: running statistics have to adapt within a few of them.
            normalise = nn.BatchNorm2d(out_channels, momentum=0.3)
            return [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), normalise, nn.ReLU()]

        self.layers = nn.Sequential(
            *stage(channels, quarter),
            *stage(quarter, half),
            nn.MaxPool2d(2),
            *stage(half, num_features)[: 2 if signed else 3],
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, d)."""
        return self.layers(images).mean(dim=(2, 3))


class MLP(nn.Module):
    """Flattened pixels through hidden layers of one width, without batch statistics.

    Examples
    --------
    >>> import torch
    >>> MLP((8, 8, 1), num_features=32)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_features: int = 512,
        depth: int = 3,
        *,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        sizes = [math.prod(image_shape), *[num_features] * depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for in_features, out_features in itertools.pairwise(sizes):
            layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        self.layers = nn.Sequential(*layers[: -1 if signed else None])

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, d)."""
        return self.layers(images)
