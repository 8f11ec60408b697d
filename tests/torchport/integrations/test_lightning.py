"""The callback and the module in Lightning's own Trainer, under both names: against plain loops and measurements."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nearest_etf.reference import etf_error
from nearest_etf.torchport import Classifier, Head, ImplicitETFHead, LearnedHead, measure_collapse

pytest.importorskip("lightning")
pytest.importorskip("pytorch_lightning")
import pytorch_lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from nearest_etf.torchport.integrations import pytorch_lightning as older
from nearest_etf.torchport.integrations.collapse_logging import labels_of
from nearest_etf.torchport.integrations.lightning import ETFClassifier, NeuralCollapseCallback

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def data(
    size: int = 48, K: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32, inputs: int = 6
) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % K
    means = torch.randn(K, inputs, generator=torch.Generator().manual_seed(9))
    return TensorDataset((means[labels] + 0.5 * torch.randn(size, inputs, generator=generator)).to(dtype), labels)


def parts(
    K: int = 4, d: int = 8, head: type[Head] = ImplicitETFHead, dropout: float = 0.0, inputs: int = 6
) -> dict[str, Any]:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(inputs, d), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d, d))
    return {"backbone": backbone, "head": head(d, K)}


def trainer(folder: Path, *callbacks: Callback, library: Any = None, **settings: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    own = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False, **quiet}
    make = Trainer if library is None else library.Trainer
    return make(default_root_dir=folder, callbacks=list(callbacks), **{**own, **settings})


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def plain_loop(images: Tensor, labels: Tensor, epochs: int, accumulate: int) -> Classifier[Any]:
    model = Classifier(**parts())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index, rows in enumerate(torch.arange(len(labels)).split(8)):
            (F.cross_entropy(model(images[rows], labels[rows]), labels[rows]) / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_agrees_with_a_plain_loop(tmp_path: Path, accumulate: int) -> None:
    training = data()
    module = ETFClassifier(**parts())
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate).fit(module, DataLoader(training, 8))
    images, labels = training.tensors
    expected = plain_loop(images, labels, epochs=2, accumulate=accumulate)
    assert_equal(module.model.state_dict(), expected.state_dict())
    assert module.model.head.running.steps == 12  # every microbatch


def test_the_older_name_trains_bit_by_bit_equally(tmp_path: Path) -> None:
    made = []
    for library, namespace in ((None, None), (pytorch_lightning, older)):
        module = (namespace.ETFClassifier if namespace else ETFClassifier)(**parts())
        callback = (namespace.NeuralCollapseCallback if namespace else NeuralCollapseCallback)()
        found = trainer(tmp_path, callback, library=library)
        found.fit(module, DataLoader(data(), 8), DataLoader(data(seed=1), 8))
        made.append((module.state_dict(), {k: v for k, v in found.callback_metrics.items() if "milli" not in k}))
    assert_equal(*[state for state, _ in made])
    assert_equal(*[figures for _, figures in made])
    assert isinstance(made[0][1]["val_nc1"], Tensor)


class IndependentMeasurement(Callback):
    """Measures after the epoch, independently, the metrics that the callback under test logs."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.found = loader, dict[str, float]()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.found = vars(measure_collapse(pl_module.model, list(self.loader), classifier="head"))


@pytest.mark.parametrize("kind", [ImplicitETFHead, LearnedHead])
def test_the_callback_agrees_with_a_measurement_afterwards(tmp_path: Path, kind: type[Head]) -> None:
    module, loader = ETFClassifier(**parts(head=kind)), DataLoader(data(seed=1), 7)
    calls = list[int]()
    module.model.head.register_forward_hook(lambda *_: calls.append(1))
    inspection = IndependentMeasurement(loader)
    found = trainer(tmp_path, NeuralCollapseCallback(stages=("train", "val")), inspection, num_sanity_val_steps=0)
    found.fit(module, DataLoader(data(), 8), loader)
    assert len(calls) == 6 + 7 + 2 * 7  # training, validation, and the two passes of measure_collapse
    logged = {name: float(value) for name, value in found.callback_metrics.items()}
    for name in (
        "nc1",
        "nc2",
        "nc2_means",
        "nc3",
        "nc4",
        "etf_distance_weight",
        "etf_distance_between",
        "cosine_margin",
    ):
        assert logged[f"val_{name}"] == pytest.approx(inspection.found[name], rel=1e-6, abs=1e-9), name
        assert f"train_{name}" in logged
    solver = {name for name in logged if name.startswith("solver_")}
    assert solver == (
        {f"solver_{name}" for name in module.model.head.solution_health()} if kind is ImplicitETFHead else set()
    )
    if kind is ImplicitETFHead:
        assert abs(logged["solver_gap"]) < 1e-5
    assert not module.model.head._forward_pre_hooks
    found.test(module, [loader, loader], verbose=False)
    assert not any(name.startswith("test_nc") for name in found.callback_metrics)  # not one of the stages


class Bare(LightningModule):
    """A foreign module, with an nn.Linear and mappings as batches."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, 4)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.fc(self.body(batch["x"]))


def as_mappings(seed: int) -> list[dict[str, Tensor]]:
    images, labels = data(seed=seed).tensors
    return [{"x": x, "labels": y} for x, y in zip(images.split(12), labels.split(12), strict=True)]


def test_any_linear_layer_of_any_module_on_several_loaders(tmp_path: Path) -> None:
    module = Bare()
    loaders: list[Any] = [DataLoader(cast(Any, as_mappings(seed)), batch_size=None) for seed in (1, 2)]
    found = trainer(tmp_path, NeuralCollapseCallback("fc", stages=["test"]))
    found.test(module, loaders, verbose=False)
    for behind, seed in (("", 1), ("_1", 2)):
        pairs = [({"input": batch["x"]}, batch["labels"]) for batch in as_mappings(seed)]
        expected = measure_collapse(
            nn.Sequential(module.body, module.fc), [(x["input"], y) for x, y in pairs], classifier="1"
        )
        for name in ("nc1", "nc2", "nc3", "nc4"):
            assert float(found.callback_metrics[f"test_{name}{behind}"]) == pytest.approx(
                getattr(expected, name), rel=1e-6
            )


def test_above_the_limit_only_the_first_pass_is_logged(tmp_path: Path) -> None:
    found = trainer(tmp_path, NeuralCollapseCallback(kept_bytes=12 * 8 * 4, stages=["test"]))
    found.test(
        ETFClassifier(
            **parts(),
        ),
        DataLoader(data(12), 5),
        verbose=False,
    )
    assert "test_nc4" in found.callback_metrics
    found.test(ETFClassifier(**parts()), DataLoader(data(16), 5), verbose=False)
    assert "test_nc4" not in found.callback_metrics
    assert "test_nc1" in found.callback_metrics


def test_an_epoch_without_two_classes_warns(tmp_path: Path) -> None:
    images, labels = data().tensors
    one = TensorDataset(images[labels == 1], labels[labels == 1])
    found = trainer(tmp_path, NeuralCollapseCallback(stages=["test"]))
    with pytest.warns(UserWarning, match=r"no collapse metrics for this epoch \(test\): 1 class\(es\) have been seen"):
        found.test(ETFClassifier(**parts()), DataLoader(one, 8), verbose=False)
    assert float(found.callback_metrics["test_loss"]) > 0


def test_bad_input_of_the_callback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown stage 'validation': did you mean 'val'\?"):
        NeuralCollapseCallback(stages=["validation"])
    with pytest.raises(ValueError, match=r"Bare has 0 heads.*classifier='model\.fc'"):
        trainer(tmp_path, NeuralCollapseCallback(stages=["test"])).test(Bare(), as_mappings(1), verbose=False)
    module = ETFClassifier(**parts())
    with pytest.raises(ValueError, match="no such layer"):
        trainer(tmp_path, NeuralCollapseCallback("fc", stages=["test"])).test(
            module, DataLoader(data(), 8), verbose=False
        )
    with pytest.raises(TypeError, match=r"expected a pair.*labels=lambda batch"):
        labels_of(torch.zeros(3))
    broken = NeuralCollapseCallback(stages=["test"], labels=lambda batch: batch[1].float())
    with pytest.raises(ValueError, match=r"labels are torch\.float32.*expected int64"):
        trainer(tmp_path, broken).test(module, DataLoader(data(), 8), verbose=False)
    assert not module.model.head._forward_pre_hooks
    assert not broken.recorders


@pytest.mark.parametrize(("kind", "K"), [(ImplicitETFHead, 70), (LearnedHead, 4)])
def test_a_resumed_run_is_bit_by_bit_equal(tmp_path: Path, kind: type[Head], K: int) -> None:
    """Shuffled batches, dropout, AdamW, a schedule; K = 70 late in training, with a warm start of the solver."""

    def run(epochs: int, checkpoint: Path | None = None) -> tuple[ETFClassifier, Any]:
        schedule: dict[str, Any] = {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}
        module = ETFClassifier(**parts(K, 80, kind, 0.1, inputs=80), **schedule)
        torch.manual_seed(1)
        parts_of_data = [data(280, K, seed, inputs=80) for seed in (0, 1)]
        loaders = [DataLoader(part, 140, shuffle=part is parts_of_data[0]) for part in parts_of_data]
        if kind is ImplicitETFHead:
            images, labels = parts_of_data[0].tensors
            module.model.head.fit(module.model.backbone(images), labels)
            for count in (module.model.head.running.steps, module.model.head.running.batches):
                count.fill_(10**6)
        found = trainer(tmp_path, NeuralCollapseCallback(), max_epochs=epochs)
        found.fit(module, *loaders, ckpt_path=checkpoint)
        return module, found

    straight, ended = run(3)
    trained, first = run(1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    torch.manual_seed(123)
    resumed, other = run(3, tmp_path / "one.ckpt")
    assert_equal(resumed.state_dict(), straight.state_dict())
    states = [found.optimizers[0].state_dict()["state"] for found in (other, ended)]
    for moments, expected in zip(*(state.values() for state in states), strict=True):
        assert_equal(moments, expected)
    warm = torch.load(tmp_path / "one.ckpt", weights_only=True)["nearest_etf"]["warm_start"]
    assert (warm is not None) == (kind is ImplicitETFHead)
    loaded = ETFClassifier.load_from_checkpoint(tmp_path / "one.ckpt", **parts(K, 80, kind, inputs=80))
    assert_equal(loaded.state_dict(), trained.state_dict())


def test_averaged_weights_are_resumed_bit_by_bit_and_refreshed(tmp_path: Path) -> None:
    """Lightning's EMA does not change the training; averaged vectors are a simplex only after `refresh`."""

    def run(name: str, epochs: int, *callbacks: Callback, checkpoint: Path | None = None) -> Any:
        module = ETFClassifier(**parts(70, 80, dropout=0.1, inputs=80))
        torch.manual_seed(1)
        keep = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        found = trainer(tmp_path, *callbacks, keep, max_epochs=epochs, enable_checkpointing=True)
        loaders = [DataLoader(data(280, 70, seed, inputs=80), 140, shuffle=seed == 0) for seed in (0, 1)]
        found.fit(module, *loaders, ckpt_path=checkpoint)
        last = torch.load(tmp_path / name / f"epoch={epochs - 1}.ckpt", weights_only=True)
        return module.model.head, last.get("current_model_state", last["state_dict"]), last["state_dict"]

    _, plain, _ = run("plain", 3)
    head, current, averaged = run("straight", 3, EMAWeightAveraging(decay=0.9))
    assert_equal(current, plain)
    run("first", 1, EMAWeightAveraging(decay=0.9))
    torch.manual_seed(123)
    first = tmp_path / "first" / "epoch=0.ckpt"
    _, *again = run("resumed", 3, EMAWeightAveraging(decay=0.9), checkpoint=first)
    assert_equal(again[0], current)
    assert_equal(again[1], averaged)
    assert etf_error(head.weight.double().numpy()) > 1e-3
    head.refresh()
    assert etf_error(head.weight.double().numpy()) < 1e-6


def test_mixed_precision_solves_in_float32(tmp_path: Path) -> None:
    module = ETFClassifier(**parts())
    found = trainer(tmp_path, NeuralCollapseCallback(), precision="bf16-mixed", max_epochs=2)
    seen = set[torch.dtype]()
    module.model.head.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    found.fit(module, DataLoader(data(), 8), DataLoader(data(seed=1), 8))
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32, torch.int64}
    assert etf_error(module.model.head.weight.double().numpy()) < 1e-6
    assert float(found.callback_metrics["val_nc1"]) > 0
    logits = found.predict(module, DataLoader(data(seed=1), 8))
    assert torch.cat(logits).shape == (48, 4)


def fitted(rank: int | None, folder: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """State and figures after two epochs, in one process or as one of two, on the same batches."""
    module = ETFClassifier(**parts(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    settings: dict[str, Any] = {"precision": "64-true", "max_epochs": 2, "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": 2, "strategy": "ddp"}
    loaders = []
    for seed in (0, 1):
        part = data(seed=seed, dtype=torch.float64)
        sampler: Any = None if rank is None else DistributedSampler(part, 2, rank, shuffle=False)
        loaders.append(DataLoader(part, 16 if rank is None else 8, sampler=sampler))
    found = trainer(folder, NeuralCollapseCallback(stages=("train", "val")), **settings)
    found.fit(module, *loaders)
    figures = {name: float(value) for name, value in found.callback_metrics.items() if "_loss" not in name}
    if rank is not None:
        dist.barrier()
        dist.destroy_process_group()
    return module.state_dict(), figures


def test_two_processes_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, figures = fitted(None, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(os, "environ", os.environ.copy())  # Lightning changes it
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK="0")
    command = [sys.executable, __file__, str(tmp_path)]
    other = subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": "1"})
    found = [fitted(0, tmp_path)]
    assert other.wait(timeout=100) == 0
    found.append(torch.load(tmp_path / "1.pt"))
    for both_state, both_figures in found:
        for name, value in both_state.items():
            torch.testing.assert_close(value, state[name], rtol=1e-9, atol=1e-9)
        assert both_figures.keys() == figures.keys()
        for name in figures.keys() - {"solver_milliseconds"}:
            assert both_figures[name] == pytest.approx(figures[name], rel=1e-4, abs=1e-6), name
    assert_equal(found[0][0], found[1][0])


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = EXAMPLES / "lightning_classifier.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--output", str(tmp_path), "--epochs", "2"])
    names = runpy.run_path(str(script))
    assert names["figures"]["val_accuracy"] > 0.9
    assert {"val_nc1", "val_nc2", "val_nc3", "val_nc4", "val_etf_distance_between", "solver_gap"} <= names[
        "figures"
    ].keys()
    assert names["same"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.save(fitted(1, Path(sys.argv[1])), f"{sys.argv[1]}/1.pt")
    os._exit(0)  # PyTorch's native threads can abort an interpreter that shuts down, which is not under test
