"""Models in the layout of a hub: bitwise equal continuation of every head, shared memory, half precision, faults."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint, save_checkpoint
from nearest_etf.torchport.training.run.settings import settings_from
from nearest_etf.torchport.training.train import train

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file

from nearest_etf.torchport.integrations.hub import (
    HubError,
    from_pretrained,
    pretrained_config,
    save_pretrained,
)
from nearest_etf.torchport.integrations.model_card import model_card

HEADS: list[tuple[type[Head], dict[str, Any]]] = [
    (LinearHead, {}),
    (LearnedHead, {"temperature": "learned"}),
    (FixedETFHead, {"initial": "random", "averaging": "class"}),
    (ImplicitETFHead, {"delta": 0.01, "formulation": "gauge-free", "gradient": False, "method": "svd"}),
    (ClassMeanHead, {"temperature": 9.0, "gradient": False}),
    (TightFrameHead, {"norms": "tight", "initial": "random"}),
]


def backbone() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(seed)), torch.arange(12) % 4


def trained(kind: type[Head] = ImplicitETFHead, **settings: Any) -> Classifier[Any]:
    torch.manual_seed(0)
    model = Classifier(backbone(), kind(8, 4, **settings))
    for seed in range(3):
        model(*batch(seed))
    return model


def step(model: Classifier[Any], seed: int) -> dict[str, Tensor]:
    """The state after a step of SGD, and the loss."""
    images, labels = batch(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model.train()(images, labels), labels)
    loss.backward()
    optimizer.step()
    return {**model.state_dict(), "loss": loss.detach()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    wrong = [n for n in found if found[n].dtype != expected[n].dtype or not torch.equal(found[n], expected[n])]
    assert wrong == []


@pytest.mark.parametrize(("kind", "settings"), HEADS)
def test_every_head_continues_bit_by_bit(tmp_path: Path, kind: type[Head], settings: dict[str, Any]) -> None:
    model = trained(kind, **settings)
    folder = save_pretrained(model, tmp_path / "model")
    torch.manual_seed(5)
    loaded = from_pretrained(folder, backbone())
    assert type(loaded.head) is kind
    assert repr(loaded.head) == repr(model.head)
    assert not loaded.training
    assert_equal(loaded.state_dict(), model.state_dict())
    images, _ = batch(9)
    assert torch.equal(loaded(images), model.eval()(images))
    for seed in (10, 11):
        assert_equal(step(loaded, seed), step(model, seed))


def test_pinned_rows_and_added_classes(tmp_path: Path) -> None:
    model = trained()
    model.head.add_classes(1, pin=True)
    loaded = from_pretrained(save_pretrained(model, tmp_path / "model"), backbone())
    assert (loaded.head.num_classes, loaded.head.kind) == (5, "pinned")
    assert torch.equal(loaded.head.pinned, model.head.pinned)
    assert_equal(step(loaded, 5), step(model, 5))


class Tied(nn.Module):
    """Two names for one parameter, a transposed view as a buffer, a slice, and a non-contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.last = nn.Linear(12, 8)
        self.register_buffer("turned", self.first.weight.detach().T)
        self.register_buffer("slice", self.first.weight.detach()[2:4])
        self.register_buffer("empty", torch.zeros(0))
        self.kernel = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1) + F.conv2d(images, self.kernel).sum()
        turned, part = self.get_buffer("turned"), self.get_buffer("slice")
        return self.last(self.second(self.first(x).relu()) @ turned + part.sum())


def test_shared_and_non_contiguous_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(Tied(), FixedETFHead(8, 4))
    folder = save_pretrained(model, tmp_path / "model")
    assert pretrained_config(folder)["tied"] == {"backbone.second.weight": "backbone.first.weight"}
    loaded = from_pretrained(folder, Tied())
    net: Any = loaded.backbone
    assert net.second.weight is net.first.weight
    assert_equal(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded(batch(0)[0]), model.eval()(batch(0)[0]))


def test_half_precision_stays_half(tmp_path: Path) -> None:
    model = trained().bfloat16()
    loaded = from_pretrained(save_pretrained(model, tmp_path / "model"), backbone())
    assert_equal(loaded.state_dict(), model.state_dict())
    images = batch(3)[0].bfloat16()
    assert torch.equal(loaded(images), model.eval()(images))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    settings = {"data": "digits", "backbone": "mlp", "num_features": 16, "epochs": 1, "batch_size": 256, "lr": 0.01}
    train(settings_from(settings), path, quiet=True)
    return path


def test_a_run_is_rebuilt_without_a_backbone(tmp_path: Path, run: Path) -> None:
    folder = save_pretrained(run, tmp_path / "digits-mlp", licence="apache-2.0")
    model, _ = load_model(run)
    loaded = from_pretrained(folder)
    assert_equal(loaded.state_dict(), model.state_dict())
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))
    given = from_pretrained(folder, copy.deepcopy(model.backbone))
    assert_equal(given.state_dict(), model.state_dict())
    config = pretrained_config(folder)
    assert config["class_names"] == [str(digit) for digit in range(10)]
    assert config["run"]["image_shape"] == [8, 8, 1]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'pipeline_tag: "image-classification"' in card
    assert "Trained on digits. Images of 8×8 pixels and 1 channel(s)" in card
    assert "| test_accuracy | 0." in card
    assert "seconds" not in card


def test_no_path_of_this_machine_is_written(tmp_path: Path, run: Path) -> None:
    """Code is not imported by a name in a downloaded file either."""
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    for path in run.iterdir():
        if path.suffix == ".pt":
            contents = load_checkpoint(path)
            contents["settings"] |= {
                "backbone": "mlp",
                "weights": "/home/someone/secret/w.pt",
                "data": "/home/someone/faces",
            }
            save_checkpoint(elsewhere / path.name, contents)
        elif path.is_file():
            (elsewhere / path.name).write_bytes(path.read_bytes())
    folder = save_pretrained(elsewhere, tmp_path / "model")
    for path in folder.iterdir():
        assert b"someone" not in path.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["run"]["settings"]["data"] == "faces"
    for chosen in ("os.path:join", "net.py:make", "timm:hf-hub:someone/model"):
        config["run"]["settings"]["backbone"] = chosen
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(HubError, match="not imported by a name in a file: pass backbone="):
            from_pretrained(folder)


def test_existing_files_are_replaced_only_on_request(tmp_path: Path) -> None:
    model = trained()
    (tmp_path / "notes.txt").write_text("mine")
    save_pretrained(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(HubError, match=r"contains config\.json, model\.safetensors, README.md already.*overwrite=True"):
        save_pretrained(trained(FixedETFHead), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    save_pretrained(trained(FixedETFHead), tmp_path, overwrite=True)
    assert type(from_pretrained(tmp_path, backbone()).head) is FixedETFHead
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_unsupported_models_are_not_saved(tmp_path: Path) -> None:
    class Own(FixedETFHead):
        pass

    for model, found in ((nn.Linear(2, 2), "is a Linear"), (Classifier(backbone(), Own(8, 4)), "with a Own")):
        with pytest.raises(HubError, match=found):
            save_pretrained(model, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="3 class names: expected 4"):
        save_pretrained(trained(), tmp_path, class_names=["a", "b", "c"])
    with torch.device("meta"):
        deferred = Classifier(backbone(), FixedETFHead(8, 4))
    with pytest.raises(HubError, match=r"backbone\.1\.weight is on the meta device"):
        save_pretrained(deferred, tmp_path)
    assert not any(tmp_path.iterdir())


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = save_pretrained(trained(), tmp_path / "model")
    with pytest.raises(HubError, match=r"config\.json is missing"):
        from_pretrained(tmp_path, backbone())
    with pytest.raises(HubError, match=r"pass backbone=, a torch\.nn\.modules\.container\.Sequential"):
        from_pretrained(folder)
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Identity(), nn.Linear(9, 8))
    with pytest.raises(
        HubError,
        match=r"of another shape: backbone\.1\.weight \(8, 12\), here \(9, 12\).*missing in the "
        r"file: backbone\.3\.weight.*not in the model: backbone\.2\.bias.*and 1 more",
    ):
        from_pretrained(folder, other)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(HubError, match=r"model\.safetensors is damaged or of another kind"):
        from_pretrained(folder, backbone())
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match=r"model\.safetensors is missing"):
        from_pretrained(folder, backbone())
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for change, named in (
        ({"library_name": "timm"}, "belongs to another library"),
        ({"format": 2, "written_by": "9.0"}, r"format 2, newer than 1: update nearest-etf to 9\.0"),
        ({"num_classes": "four"}, "num_classes is 'four'"),
        ({"head": {"kind": "wrong"}}, "KeyError: 'wrong'"),
        ({"head": {**config["head"], "code": "import os"}}, "unexpected keyword argument 'code'"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(HubError, match=named):
            from_pretrained(folder, backbone())


def test_the_client_of_the_hub_reads_the_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    names = ["cat: the animal", "“dog”", "- bird", "#4"]
    folder = save_pretrained(
        trained(),
        tmp_path / "pets",
        data="pets",
        class_names=names,
        metrics={"test_accuracy": 0.97, "test_nc1": 0.2, "val_loss": float("nan")},
        certificate={"etf_error": 1e-7, "certificate_gap": 2e-8, "kind": "implicit"},
        licence="cc-by-4.0",
        task="image-classification",
    )
    card = hub.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("cc-by-4.0", "nearest-etf", ["pets"])
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.97, "test")
    for words in ("# pets", "cat: the animal, “dog”, - bird, #4", "cc-by-4.0", "| test_nc1 | 0.2 |", "| 2e-08 |"):
        assert words in card.text
    assert "nan" not in card.text
    plain = model_card("x", {**pretrained_config(folder), "class_names": []})
    assert "None was stated" in plain
    assert "Numbered 0…3" in plain
    assert "license" not in plain.split("---")[1]
