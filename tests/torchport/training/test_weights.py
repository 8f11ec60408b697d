"""Weights from a file: with any prefix; tensors that do not fit are listed; a file without fitting tensors is
refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nearest_etf.torchport.training.backbones.resnet import ResNet
from nearest_etf.torchport.training.backbones.small import SmallCNN
from nearest_etf.torchport.training.run.settings import Settings, SettingsError
from nearest_etf.torchport.training.weights import load_weights, read_weights, start_weights


def network(seed: int) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(3, 16)


def assert_state(module: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("holder", ["", "state_dict", "model", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model._orig_mod.", "module.encoder_q.", "_orig_mod."])
def test_prefixes_and_holders(tmp_path: Path, prefix: str, holder: str) -> None:
    stored = network(0).state_dict()
    contents: dict[str, object] = {f"{prefix}{name}": tensor for name, tensor in stored.items()}
    contents |= {f"{prefix}fc.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(3), "epoch": 4}
    torch.save({holder: contents, "optimizer": {"state": {}}} if holder else contents, tmp_path / "w.pth")
    backbone = network(1)
    (note,) = start_weights(backbone, Settings(weights=str(tmp_path / "w.pth")), channels=3)
    assert_state(backbone, stored)
    assert note.startswith(f"weights of {tmp_path / 'w.pth'}: 15 of 15 tensors")
    assert note.endswith("not used: fc.weight, head.bias")


def test_a_prefix_of_the_backbone_s_own_names(tmp_path: Path) -> None:
    stored = network(0).state_dict()
    torch.save(stored, tmp_path / "w.pth")
    wrapped = nn.ModuleDict({"network": network(1)})
    load_weights(wrapped, tmp_path / "w.pth")
    assert_state(wrapped["network"], stored)


def test_a_checkpoint_of_the_averaged_weights(tmp_path: Path) -> None:
    raw, averaged = network(0).state_dict(), network(1).state_dict()
    contents = {"model": raw, "ema": {"steps": 3, "model": {f"backbone.{n}": t for n, t in averaged.items()}}}
    torch.save(contents, tmp_path / "best.pt")
    backbone = network(2)
    load_weights(backbone, tmp_path / "best.pt")
    assert_state(backbone, averaged)
    torch.save({**contents, "ema": {}}, tmp_path / "best.pt")
    load_weights(backbone, tmp_path / "best.pt")
    assert_state(backbone, raw)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    stored = {f"module.{n}": t for n, t in network(0).state_dict().items()}
    del stored["module.layers.1.bias"]
    stored["module.layers.0.weight"] = torch.zeros(4, 1, 3, 3)
    torch.save(stored, tmp_path / "w.pth")
    backbone = network(1)
    before = {n: t.clone() for n, t in backbone.state_dict().items()}
    words = load_weights(backbone, tmp_path / "w.pth")
    assert words == (
        "13 of 15 tensors, by the prefix 'module.'; left out, of another size: layers.0.weight (4, 1, 3, 3), here "
        "(4, 3, 3, 3); not in the file: layers.1.bias"
    )
    for name in ("layers.0.weight", "layers.1.bias"):
        assert torch.equal(backbone.state_dict()[name], before[name])
    assert torch.equal(backbone.state_dict()["layers.3.weight"], stored["module.layers.3.weight"])


def test_files_of_torchvision_fit_the_residual_networks_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = ResNet("resnet18", 3, stem="imagenet", width=4).state_dict()
    renamed = {n.replace("stages.", "layer"): t for n, t in theirs.items()}
    renamed = {(f"layer{int(n[5]) + 1}{n[6:]}" if n.startswith("layer") else n): t for n, t in renamed.items()} | {
        "fc.weight": torch.zeros(10, 32),
        "fc.bias": torch.zeros(10),
    }
    torch.save(renamed, tmp_path / "resnet18.pth")
    ours = ResNet("resnet18", 3, stem="imagenet", width=4)
    assert load_weights(ours, tmp_path / "resnet18.pth") == "100 of 100 tensors; not used: fc.weight, fc.bias"
    assert_state(ours, theirs)


def test_a_file_without_a_fitting_tensor_is_refused(tmp_path: Path) -> None:
    backbone = network(0)
    for name, contents, complaint in (
        (
            "other.pth",
            nn.Linear(2, 2).state_dict(),
            "no tensor fits the backbone. The file holds weight, bias; the backbone",
        ),
        ("numbers.pth", {"epoch": 3}, "holds no tensors"),
        ("list.pth", [1, 2], "damaged or of another kind"),
    ):
        torch.save(contents, tmp_path / name)
        with pytest.raises(SettingsError, match=complaint):
            load_weights(backbone, tmp_path / name)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # a pickle that would run code
    (tmp_path / "text.pth").write_text("no weights")
    for name, complaint in (("none.pth", "is missing"), ("text.pth", "damaged"), ("module.pth", "damaged")):
        with pytest.raises(SettingsError, match=complaint) as refused:
            load_weights(backbone, tmp_path / name)
        assert "\n" not in str(refused.value)


def test_safetensors_are_read_if_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    path.touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SettingsError, match="needs safetensors: pip install safetensors"):
        read_weights(path)
    stored = network(0).state_dict()
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(load_file=lambda file: stored))
    backbone = network(1)
    load_weights(backbone, path)
    assert_state(backbone, stored)


def test_pretrained_and_weights_together_are_refused() -> None:
    with pytest.raises(SettingsError, match="pretrained and weights both set the weights"):
        Settings(backbone="timm:x", pretrained=True, weights="w.pth")
    with pytest.raises(SettingsError, match="resnet18 has no pretrained weights: pass a file"):
        Settings(backbone="resnet18", pretrained=True)
