"""Backbones as people write them: each agrees with PyTorch at every batch size, or is refused with a clear message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.export import ExportError, export_onnx
from nearest_etf.export.backbone import ANY_BATCH, RANDOM, backbone_model, reason_of
from nearest_etf.export.freeze import freeze
from nearest_etf.torchport import Classifier, LearnedHead

D = 8
OPTIONS: dict[str, Any] = {"image_shape": (6, 6, 2), "mean": [0.4, 0.5], "std": [0.25, 0.25]}


class Net(nn.Module):
    """A convolution (N, 2, 6, 6) -> (N, 8, 6, 6), followed by `rest(its output, images)`."""

    def __init__(self, rest: Callable[..., Any], convolution: Callable[[nn.Module], nn.Module] = lambda c: c) -> None:
        super().__init__()
        self.convolution = convolution(nn.Conv2d(2, D, 3, padding=1))
        self.rest = rest

    def forward(self, images: Tensor) -> Any:
        return self.rest(self.convolution(images), images)


class OnPixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, D)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.sub_(0.5).view(images.size(0), -1))  # changes its input; needs contiguous images


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(12, D, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows, _ = self.layer(images.permute(0, 2, 3, 1).flatten(2))
        return rows[:, -1]


class WindowedAttention(nn.Module):
    """Attention within windows, in five dimensions (N, heads, windows, tokens, width), as in timm's Hiera."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3 * D)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.layer(images.permute(0, 2, 3, 1)).reshape(images.shape[0], 4, 9, 3, 2, D // 2)
        q, k, v = tokens.permute(3, 0, 4, 1, 2, 5)
        return F.scaled_dot_product_attention(q, k, v).mean(dim=(2, 3)).flatten(1)


class Remembering(Net):
    """Stores its last activations, which are part of an autograd graph after training."""

    def forward(self, images: Tensor) -> Any:
        self.last = super().forward(images)
        return self.last


def trained(backbone: nn.Module) -> nn.Module:
    backbone(torch.randn(4, 2, 6, 6)).sum().backward()
    return backbone


def mean(x: Tensor, _: Tensor) -> Tensor:
    return x.relu().mean((2, 3))


def by_autocast(x: Tensor, _: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x.flatten(2) @ x.flatten(2).mT).float().mean(2)


EXPORTED: dict[str, Callable[[], nn.Module]] = {
    "squeeze": lambda: Net(lambda x, _: F.adaptive_avg_pool2d(x, 1).squeeze()),
    "view of pixels, in place": OnPixels,
    "view not contiguous": lambda: Net(lambda x, _: x.permute(0, 2, 3, 1).view(x.size(0), -1, D).mean(1)),
    "len": lambda: Net(lambda x, _: x.mean((2, 3)).reshape(len(x), -1)),
    "float64 features": lambda: Net(lambda x, _: x.double().mean((2, 3))),
    "old weight norm": lambda: trained(Net(mean, nn.utils.weight_norm)),  # type: ignore[arg-type]
    "remembering": lambda: trained(Remembering(mean)),
    "half": lambda: Net(mean).half().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "recurrent": Recurrent,
    "windows": WindowedAttention,
}


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_backbones_agree_with_pytorch(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(EXPORTED[name](), LearnedHead(D, 3, temperature=5.0))
    report = export_onnx(model, tmp_path / "model.onnx", **OPTIONS, float_input=name == "view of pixels, in place")
    assert report.batch_sizes == (1, 7, 64)
    assert report.outputs["logits"].absolute <= 1e-5
    assert report.disagreements == 0


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "tuple": (
        lambda x, _: (x.mean((2, 3)), x),
        r"returns a tuple for 2 images: expected a tensor of features \(2, 8\)",
    ),
    "dict": (lambda x, _: {"features": x.mean((2, 3))}, "returns a dict for 2 images: .* wrap it in a module"),
    "not pooled": (lambda x, _: x, r"returns \(2, 8, 6, 6\) float32 for 2 images"),
    "integers": (lambda x, _: x.mean((2, 3)).long(), r"returns \(2, 8\) int64"),
    "fails": (
        lambda x, _: x.mean((2, 3)).view(64, -1),
        r"fails on images of shape .* = \(2, 2, 6, 6\): shape",
    ),
    "batch of two": (lambda x, _: x.mean((2, 3)).view(2, -1), "has to accept any batch size: write x.flatten"),
    "loop": (lambda x, _: torch.stack([one.mean((1, 2)) for one in x]), "has to accept any batch size"),
    "branch": (lambda x, _: x.mean((2, 3)) if x.sum() > 1 else -x.mean((2, 3)), "must not branch on tensor values"),
    "dropout": (lambda x, _: F.dropout(x.mean((2, 3)), 0.5), "random in eval mode"),
    "batch statistics": (lambda x, _: x.mean((2, 3)) - x.mean((0, 2, 3)), "change with the other images of its batch"),
    "no such operator": (lambda x, _: F.adaptive_max_pool2d(x, 5).mean((2, 3)), "calls adaptive_max_pool2d, which has"),
    "autocast": (by_autocast, "leave autocast and .bfloat16"),
    "bfloat16": (lambda x, _: x.bfloat16().relu().float().mean((2, 3)), "the forward of the backbone computes in bfl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_without_output(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rest, message = REFUSED[name]
    torch.manual_seed(0)
    frozen = freeze(Classifier(Net(rest), LearnedHead(D, 3)))
    with pytest.raises(ExportError, match=message) as raised:
        backbone_model(frozen, (6, 6, 2))
    assert "\n" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_random_operators_in_the_graph_are_refused() -> None:
    """The dropout rate is so small that two calls agree."""
    frozen = freeze(Classifier(Net(lambda x, _: F.dropout(x.mean((2, 3)), 1e-9)), LearnedHead(D, 3)))
    with pytest.raises(ExportError) as raised:
        backbone_model(frozen, (6, 6, 2))
    assert str(raised.value) == RANDOM


def test_a_failure_of_pytorch_at_another_batch_size_is_one_line(tmp_path: Path) -> None:
    def few(x: Tensor, images: Tensor) -> Tensor:
        assert len(images) <= 32, "too many images"
        return x.mean((2, 3))

    torch.manual_seed(0)
    with pytest.raises(ExportError, match=r"any batch size|PyTorch's own model fails on 64 images: too many images"):
        export_onnx(Classifier(Net(few), LearnedHead(D, 3)), tmp_path / "model.onnx", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_reasons_come_from_the_causes_of_an_error() -> None:
    cause = RuntimeError("Constraints violated (N)! For more information, run with …\n - more")
    error = ValueError("Failed. \x1b[96mThis is step 1/3\x1b[0m")
    error.__cause__ = cause
    assert reason_of(error) == ANY_BATCH
    error.__cause__ = None
    assert reason_of(error) == "torch.export cannot trace its forward (ValueError: Failed. This is step 1/3)"
