"""What is taken from a model, and models without a backbone, head or constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nearest_etf.export import ExportError
from nearest_etf.export.freeze import freeze
from nearest_etf.torchport import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead


def parts(backbone: object = None, **head: object) -> nn.Module:
    """A module with a backbone and a head that has the given attributes."""
    model = nn.Module()
    model.backbone = nn.Flatten() if backbone is None else backbone  # type: ignore[assignment]
    model.head = nn.Module()
    for name, value in head.items():
        setattr(model.head, name, value)
    return model


@pytest.mark.parametrize("head", [LearnedHead(8, 3), FixedETFHead(8, 3), ImplicitETFHead(8, 3, delta=0.01)])
def test_takes_the_classifier_in_force(head: Head) -> None:
    model = Classifier(nn.Flatten(), head).train()
    frozen = freeze(model)
    np.testing.assert_array_equal(frozen.weight, head.weight.detach().numpy())
    np.testing.assert_array_equal(frozen.bias, head.bias.numpy())
    assert frozen.describe_head()["kind"] == head.kind
    assert frozen.describe_head()["delta"] == getattr(head, "delta", None)
    assert not frozen.backbone.training
    assert model.training, "the caller's model was put into eval mode"


def test_takes_a_model_straight_from_training() -> None:
    head = ImplicitETFHead(8, 3)
    model = Classifier(nn.Linear(4, 8), head)
    model(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])).sum().backward()
    np.testing.assert_array_equal(freeze(model).weight, head.weight.numpy())


def test_refuses_a_forward_that_a_copy_would_share_with_the_original() -> None:
    backbone = nn.Linear(4, 8)
    backbone.forward = backbone.forward  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="replaced the forward of the backbone"):
        freeze(Classifier(backbone, LearnedHead(8, 3)))


def test_a_head_without_bias_has_none() -> None:
    frozen = freeze(parts(weight=torch.eye(3, 5), bias=None, temperature=2))
    assert frozen.bias.tolist() == [0, 0, 0]
    assert (frozen.num_classes, frozen.num_features, frozen.temperature) == (3, 5, 2.0)


def test_unwraps_compiled_backbones() -> None:
    backbone = nn.Linear(4, 8)
    model = Classifier(torch.compile(backbone), LearnedHead(8, 3))  # type: ignore[arg-type]
    assert type(freeze(model).backbone) is nn.Linear


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "no module .backbone"),
        (parts(weight=torch.eye(3)), "no attribute 'temperature'"),
        (parts(temperature=5.0), "no attribute 'weight'"),
        (parts(weight=[[1.0]], temperature=5.0), "weight is a list: expected a tensor"),
        (parts(weight=torch.ones(3), temperature=5.0), r"shape \(3,\): expected \(K, d\)"),
        (parts(weight=torch.full((3, 3), torch.nan), temperature=5.0), "NaN"),
        (parts(weight=torch.eye(3), bias=torch.zeros(2), temperature=5.0), r"bias has shape \(2,\)"),
        (parts(weight=torch.eye(3), temperature=0.0), "temperature is 0.0: expected a positive"),
    ],
)
def test_refuses_what_is_no_classifier(model: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        freeze(model)
