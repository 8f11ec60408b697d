"""Residual networks, with the stride on the 3×3 convolution of a bottleneck (He et al., arXiv 1512.03385).

Two stems: "imagenet" (7×7, stride 2, then pooling), which *Guiding Neural Collapse* uses at every image size, and
"cifar" (3×3, stride 1), which keeps the resolution of small images.
"""

from __future__ import annotations

from torch import Tensor, nn

DEPTHS: dict[str, tuple[bool, tuple[int, ...]]] = {  # name: (bottleneck?, blocks per stage)
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
}


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the channels at the end, added to their input.

    Parameters
    ----------
    in_channels, width : int
        Channels of the input, and of the first convolution.
    stride : int
    bottleneck : bool
        Three convolutions instead of two.
    last_relu : bool
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, bottleneck: bool, last_relu: bool = True) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        self.conv1 = _conv(in_channels, width, 1) if bottleneck else _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride if bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(width)
        if bottleneck:
            self.conv3 = _conv(width, out_channels, 1)
            self.bn3 = nn.BatchNorm2d(out_channels)
        # In channels-last memory oneDNN 3.12 writes out of bounds in the backward pass of a strided 1×1 convolution of
        # fewer than 16 channels (oneDNN issue 6035): there the pixels are subsampled first, with the same result.
        self.subsampling = stride if in_channels < 16 else 1
        self.downsample = (
            nn.Sequential(_conv(in_channels, out_channels, 1, stride // self.subsampling), nn.BatchNorm2d(out_channels))
            if stride > 1 or in_channels != out_channels
            else nn.Identity()
        )
        self.bottleneck, self.last_relu = bottleneck, last_relu
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(self.relu(y)))
        if self.subsampling > 1:
            x = x[:, :, :: self.subsampling, :: self.subsampling]
        y = y + self.downsample(x)
        return self.relu(y) if self.last_relu else y


class ResNet(nn.Module):
    """A residual network without its classifier.

    Parameters
    ----------
    name : {"resnet18", "resnet34", "resnet50", "resnet101"}
    channels : int
        Of the images.
    stem : {"imagenet", "cifar"}
    width : int
        Channels of the first stage; 64 in the paper.
    signed : bool
        Leave out the ReLU of the last block, so that features may be negative.

    Examples
    --------
    >>> import torch
    >>> ResNet("resnet18", channels=3, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self, name: str, channels: int = 3, *, stem: str = "cifar", width: int = 64, signed: bool = False
    ) -> None:
        super().__init__()
        bottleneck, depths = DEPTHS[name]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = _conv(channels, width, 3)
            self.maxpool = nn.Identity()
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        stages, in_channels = [], width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                last = stage == len(depths) - 1 and index == depth - 1
                inner = width * 2**stage
                blocks.append(Block(in_channels, inner, stride, bottleneck=bottleneck, last_relu=not (last and signed)))
                in_channels = 4 * inner if bottleneck else inner
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, d)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.stages(x).mean(dim=(2, 3))
