"""VGG networks with batch normalisation, without dense layers (Simonyan & Zisserman, arXiv 1409.1556)."""

from __future__ import annotations

from torch import Tensor, nn

STAGES: dict[str, tuple[int, ...]] = {  # convolutions before each of the five poolings
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
SMALLEST_IMAGE = 32  # five halvings


class VGG(nn.Module):
    """A VGG network whose features are the mean over positions.

    Parameters
    ----------
    name : {"vgg11", "vgg13", "vgg16", "vgg19"}
    channels : int
        Of the images.
    width : int
        Channels of the first stage; 64 in the paper.
    signed : bool
        Leave out the last ReLU.

    Examples
    --------
    >>> import torch
    >>> VGG("vgg11", channels=3, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, name: str, channels: int = 3, *, width: int = 64, signed: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = channels
        for stage, convolutions in enumerate(STAGES[name]):
            out_channels = width * min(2**stage, 8)
            for _ in range(convolutions):
                layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        if signed:
            del layers[-2]
        self.layers = nn.Sequential(*layers)
        self.num_features = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, d)."""
        return self.layers(images).mean(dim=(2, 3))
