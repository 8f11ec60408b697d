"""A backbone with a head on top."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor, nn

from .base import Head

HeadT = TypeVar("HeadT", bound=Head)


class Classifier(nn.Module, Generic[HeadT]):
    """A backbone that maps images, or any other input, to features (N, d), and a head on top.

    Generic over the head, so that type checkers know the methods of `model.head`.

    Parameters
    ----------
    backbone : nn.Module
    head : Head

    Raises
    ------
    ValueError, RuntimeError
        When called, as `Head.forward`.

    Examples
    --------
    >>> import torch
    >>> from nearest_etf.torchport import FixedETFHead
    >>> model = Classifier(nn.Flatten(), FixedETFHead(12, 4))
    >>> model(torch.randn(2, 3, 2, 2)).shape
    torch.Size([2, 4])
    """

    backbone: nn.Module
    head: HeadT

    def __init__(self, backbone: nn.Module, head: HeadT) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor, labels: Tensor | None = None, update: bool = True) -> Tensor:
        """Logits (N, K) of images (N, C, H, W); labels and `update` as in `Head.forward`."""
        return self.head(self.backbone(images), labels, update)
