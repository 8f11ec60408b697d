"""The constants that `freeze` reads from a model, and its errors for models without a backbone, head or constants."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nearest_etf.export import ExportError
from nearest_etf.export.freeze import freeze
from nearest_etf.torchport import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead, LinearHead


def parts(backbone: object = None, **head: object) -> nn.Module:
    """A module with a backbone, and a head with the given attributes."""
    model = nn.Module()
    model.backbone = nn.Flatten() if backbone is None else backbone  # type: ignore[assignment]
    model.head = nn.Module()
    for name, value in head.items():
        setattr(model.head, name, value)
    return model


class Cosine(nn.Linear):
    """A linear layer whose forward normalises features."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.normalize(features), self.weight)


@pytest.mark.parametrize(
    "head", [LearnedHead(8, 3), FixedETFHead(8, 3), ImplicitETFHead(8, 3, delta=0.01), LinearHead(8, 3)]
)
def test_the_constants_are_those_of_the_current_classifier(head: Head) -> None:
    model = Classifier(nn.Flatten(), head).train()
    frozen = freeze(model)
    np.testing.assert_array_equal(frozen.weight, head.weight.detach().numpy())
    np.testing.assert_array_equal(frozen.bias, head.bias.detach().numpy())
    assert frozen.temperature == head.temperature
    assert frozen.describe_head()["kind"] == head.kind
    assert frozen.describe_head()["delta"] == getattr(head, "delta", None)
    assert not frozen.backbone.training
    assert model.training, "the caller's model was put into eval mode"


def test_a_model_in_training_mode_is_frozen() -> None:
    head = ImplicitETFHead(8, 3)
    model = Classifier(nn.Linear(4, 8), head)
    model(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])).sum().backward()
    np.testing.assert_array_equal(freeze(model).weight, head.weight.numpy())


def test_a_replaced_forward_is_refused_because_a_copy_would_share_it() -> None:
    backbone = nn.Linear(4, 8)
    backbone.forward = backbone.forward  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="the forward of the backbone was replaced"):
        freeze(Classifier(backbone, LearnedHead(8, 3)))


def test_a_head_without_bias_gets_zeros() -> None:
    frozen = freeze(parts(weight=torch.eye(3, 5), bias=None, temperature=2))
    assert frozen.bias.tolist() == [0, 0, 0]
    assert (frozen.num_classes, frozen.num_features, frozen.temperature) == (3, 5, 2.0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_linear_layer_is_a_linear_head(bias: bool) -> None:
    model = parts()
    model.head = nn.Linear(8, 3, bias)
    frozen = freeze(model)
    assert frozen.describe_head() == {
        **{"kind": "linear", "num_classes": 3, "num_features": 8, "temperature": None},
        **{"delta": None, "formulation": None, "norms": None},
    }
    np.testing.assert_array_equal(frozen.bias, model.head.bias.detach().numpy() if bias else np.zeros(3))


def test_a_parametrised_linear_layer_is_a_linear_head() -> None:
    model, head = parts(), nn.Linear(8, 3)
    model.head = nn.utils.parametrizations.weight_norm(head)
    frozen = freeze(model)
    assert frozen.describe_head()["kind"] == "linear"
    np.testing.assert_array_equal(frozen.weight, head.weight.detach().numpy())


def test_a_linear_layer_with_its_own_forward_needs_a_temperature() -> None:
    model = parts()
    model.head = Cosine(8, 3)
    with pytest.raises(
        ExportError, match=r"a Cosine, has no attribute 'temperature'.*None if it does not normalise them"
    ):
        freeze(model)
    model.head.temperature = 1.0  # type: ignore[assignment]
    assert freeze(model).describe_head()["kind"] == "Cosine"


def test_own_heads_without_normalisation_have_temperature_none() -> None:
    frozen = freeze(parts(weight=torch.eye(3, 5), temperature=None))
    assert frozen.temperature is None
    assert frozen.describe_head()["temperature"] is None


@pytest.mark.parametrize(("log_temperature", "temperature"), [(2.0, 7.389056), (6.0, 100.0)])
def test_a_learned_temperature_has_its_present_value(log_temperature: float, temperature: float) -> None:
    head = LearnedHead(8, 3, "learned")
    assert head.log_temperature is not None
    with torch.no_grad():
        head.log_temperature.fill_(log_temperature)
    frozen = freeze(Classifier(nn.Flatten(), head))
    assert frozen.temperature == head.temperature == pytest.approx(temperature, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.float16, 2**-10), (torch.bfloat16, 2**-7)],
)
def test_heads_of_any_floating_type_are_frozen(dtype: torch.dtype, eps: float) -> None:
    own = freeze(parts(weight=torch.eye(3, 5, dtype=dtype), temperature=2)), eps
    ours = freeze(Classifier(nn.Flatten(), ImplicitETFHead(8, 3).to(dtype))), eps
    for frozen, expected in (own, ours):
        assert frozen.weight.dtype == np.float32
        assert frozen.eps == expected


def test_wrappers_around_a_model_are_removed() -> None:
    backbone = nn.Linear(4, 8)
    model = Classifier(torch.compile(backbone), LearnedHead(8, 3))  # type: ignore[arg-type]
    for wrapped in (model, torch.optim.swa_utils.AveragedModel(model), nn.DataParallel(model), torch.compile(model)):
        frozen = freeze(wrapped)  # type: ignore[arg-type]
        assert type(frozen.backbone) is nn.Linear
        assert type(frozen.head) is LearnedHead


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "no module .backbone"),
        (parts(weight=torch.eye(3)), "no attribute 'temperature'"),
        (parts(temperature=5.0), "no attribute 'weight'"),
        (parts(weight=[[1.0]], temperature=5.0), "weight is a list: expected a tensor"),
        (parts(weight=torch.ones(3), temperature=5.0), r"shape \(3,\): expected \(K, d\)"),
        (parts(weight=torch.ones(1, 3), temperature=5.0), r"shape \(1, 3\): expected .* K ≥ 2"),
        (parts(weight=torch.full((3, 3), torch.nan), temperature=5.0), "NaN"),
        (parts(weight=torch.eye(3), bias=torch.zeros(2), temperature=5.0), r"bias has shape \(2,\)"),
        (parts(weight=torch.eye(3), temperature=0.0), "temperature is 0.0: expected a positive"),
        (
            parts(weight=torch.eye(3), temperature="learned"),
            "temperature is 'learned': expected a positive number, or None",
        ),
    ],
)
def test_other_modules_than_classifiers_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        freeze(model)


def lazy() -> nn.Module:
    return nn.LazyLinear(8)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lazy, "the backbone has lazy layers without a shape: run the model on one batch first"),
        (lambda: nn.Linear(4, 8, device="meta"), "the backbone is on the meta device"),
        (lambda: torch.jit.script(nn.Linear(4, 8)), "the backbone is TorchScript: export the original module"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_backbones_without_values_or_code_are_refused(backbone: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        freeze(Classifier(backbone(), LearnedHead(8, 3)))


def test_a_failed_copy_is_an_error_of_one_line() -> None:
    backbone = nn.Linear(4, 8)
    backbone.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ExportError, match="the backbone, a Linear, cannot be copied: cannot pickle"):
        freeze(Classifier(backbone, LearnedHead(8, 3)))
