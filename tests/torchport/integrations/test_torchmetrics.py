"""The metric for torchmetrics: against the meter, over processes, and with all operations of torchmetrics."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nearest_etf.reference import neural_collapse
from nearest_etf.torchport import ImplicitETFHead, NeuralCollapseMeter

pytest.importorskip("torchmetrics")
from torchmetrics import Accuracy, MetricCollection

from nearest_etf.torchport.integrations.torchmetrics import SECOND_PASS, NeuralCollapseMetric


def stream(
    seed: int = 0, d: int = 6, K: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Batches far from the origin, the first without one of the classes, and a classifier."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    batches = []
    for index in range(5):
        labels = torch.randint(int(index == 0), K, (11 + index,), generator=generator)
        noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
        batches.append(((1e3 + means[labels] + noise).to(dtype), labels))
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((K, d), (K,)))
    return batches, weight, bias


def fed(
    metric: NeuralCollapseMetric, batches: list[tuple[Tensor, Tensor]], *classifier: Tensor
) -> NeuralCollapseMetric:
    for features, labels in batches:
        metric.update(features, labels, *classifier)
    return metric


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_figures_agree_with_the_meter_and_the_reference(seed: int, dtype: torch.dtype) -> None:
    batches, weight, bias = stream(seed, dtype=dtype)
    figures = fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute()
    meter = NeuralCollapseMeter(6, 4)
    for features, labels in batches:
        meter.update(features, labels)
    for name, value in asdict(meter.compute(weight, bias)).items():
        if isinstance(value, float) and name not in SECOND_PASS:
            assert figures[name].item() == value
    x, y = (torch.cat(tensors).numpy() for tensors in zip(*batches, strict=True))
    reference = neural_collapse(x.astype("float64"), y, weight.numpy(), bias.numpy())
    for name, value in figures.items():
        assert value.item() == pytest.approx(getattr(reference, name), rel=1e-3 if dtype == torch.float32 else 1e-8)


def test_without_a_classifier_its_figures_are_omitted() -> None:
    batches, weight, _ = stream()
    bare = fed(NeuralCollapseMetric(6, 4), batches).compute()
    full = fed(NeuralCollapseMetric(6, 4), batches, weight).compute()
    assert {"nc1", "nc2_means", "cdnv"} <= bare.keys() < full.keys()
    assert full.keys() - bare.keys() == {
        *("nc2", "nc3", "bias_offset", "equinorm_weight", "equinorm_difference"),
        *("etf_distance_weight", "etf_distance_between"),
    }
    assert_same(bare, {name: full[name] for name in bare})


def test_the_last_given_classifier_is_used() -> None:
    batches, weight, bias = stream()
    metric = fed(NeuralCollapseMetric(6, 4), batches[:-1], torch.ones(4, 6), bias)
    metric.update(*batches[-1], weight)
    assert_same(metric.compute(), fed(NeuralCollapseMetric(6, 4), batches, weight).compute())


def test_a_metric_without_samples_is_refused() -> None:
    metric = NeuralCollapseMetric(6, 4)
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="no sample has been"),
    ):
        metric.compute()
    metric.update(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"metric\.update\(features, labels, weight\)"):
        metric.compute()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(2, 5), torch.tensor([0, 1])), r"\(2, 5\).*\(B, 6\)"),
        ((torch.zeros(2, 6), torch.tensor([0, 4])), "0…4; expected 0…3"),
        ((torch.zeros(2, 6), torch.tensor([0, 1]), torch.zeros(6, 4)), r"weight has shape \(6, 4\); expected \(4, 6\)"),
        ((torch.zeros(2, 6), torch.tensor([0, 1]), torch.zeros(4, 6), torch.zeros(6)), r"bias has shape \(6,\)"),
    ],
)
def test_wrong_shapes_are_refused(arguments: tuple[Tensor, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NeuralCollapseMetric(6, 4).update(*arguments)


def test_reset_clears_the_state() -> None:
    batches, weight, bias = stream()
    metric = fed(NeuralCollapseMetric(6, 4), stream(seed=1)[0], torch.ones(4, 6))
    metric.reset()
    assert not metric.totals.any()
    assert_same(
        fed(metric, batches, weight, bias).compute(), fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute()
    )


def test_merged_states_agree_with_one_metric() -> None:
    batches, weight, bias = stream()
    whole = fed(NeuralCollapseMetric(6, 4), batches, weight, bias)
    for cut in range(len(batches) + 1):
        left = fed(NeuralCollapseMetric(6, 4), batches[:cut], weight, bias)
        left.merge_state(fed(NeuralCollapseMetric(6, 4), batches[cut:], weight, bias))
        assert left.totals[1:5].tolist() == whole.totals[1:5].tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns of a metric that was merged but never updated
            assert_same(left.compute(), whole.compute(), 1e-12)


def test_forward_returns_the_batch_and_accumulates() -> None:
    batches, weight, bias = stream()
    metric = NeuralCollapseMetric(6, 4)
    for batch in batches:
        alone = fed(NeuralCollapseMetric(6, 4), [batch], weight, bias)
        assert_same(metric(*batch, weight, bias), alone.compute())
    assert_same(metric.compute(), fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute(), 1e-12)


def test_copies_state_dicts_pickles_and_devices_keep_the_state() -> None:
    batches, weight, bias = stream()
    metric = fed(NeuralCollapseMetric(6, 4), batches, weight, bias)
    expected = metric.compute()
    assert metric.state_dict() == {}  # as in all of torchmetrics, unless requested
    metric.persistent(True)
    stored = io.BytesIO()
    torch.save(metric.state_dict(), stored)
    stored.seek(0)
    loaded = NeuralCollapseMetric(6, 4)
    loaded.persistent(True)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    loaded._update_count = 1  # torchmetrics keeps it outside the state
    same = [pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone(), loaded, metric.to("cpu").half()]
    for other in same:
        assert_same(other.compute(), expected)
        assert other.totals.dtype == torch.float64
    other = same[0]
    other.update(*batches[0])
    assert not torch.equal(other.totals, metric.totals)  # nothing is shared
    assert metric.to("meta").totals.device.type == "meta"


def test_in_a_collection_with_others() -> None:
    batches, weight, bias = stream()
    collection = MetricCollection(
        {"accuracy": Accuracy(task="multiclass", num_classes=4), "collapse": NeuralCollapseMetric(6, 4)}, prefix="val_"
    )
    for features, labels in batches:
        logits = features @ weight.T + bias
        collection.update(preds=logits, target=labels, features=features, labels=labels, weight=weight, bias=bias)
    figures = collection.clone(prefix="test_").compute()
    assert figures["test_accuracy"] > 0
    expected = fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute()
    assert_same({name: figures[f"test_{name}"] for name in expected}, expected)


def test_evaluation_in_inference_mode_and_training_share_a_metric() -> None:
    batches, weight, bias = stream()
    metric = NeuralCollapseMetric(6, 4)
    with torch.inference_mode():
        fed(metric, batches, weight, bias).compute()
        metric.reset()
    assert_same(
        fed(metric, batches, weight, bias).compute(), fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute()
    )


def test_a_head_that_has_collapsed() -> None:
    head = ImplicitETFHead(8, 4)
    features, labels = torch.eye(8)[:4].repeat(3, 1), torch.arange(4).repeat(3)
    head.fit(features, labels)
    metric = NeuralCollapseMetric(8, 4)
    metric.update(head.normalise(features), labels, head.weight, head.bias)
    figures = metric.compute()
    assert figures["nc1"] == 0
    assert max(figures[name].item() for name in ("nc2", "nc3", "etf_distance_between")) < 1e-6


def one_of_two(rank: int, folder: str) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Rank 0 has two batches, the first without class 0, and rank 1 three; for a further metric, rank 1 has all."""
    wait = timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=wait)
    batches, weight, bias = stream(seed=5)
    mine = [batches[:2], batches[2:]][rank]
    metric = fed(NeuralCollapseMetric(6, 4), mine[:1], weight, bias)
    metric.compute()
    figures = [fed(metric, mine[1:], weight, bias).compute(), metric.compute()]  # syncing does not change later results
    figures.append(fed(NeuralCollapseMetric(6, 4), [[], batches][rank], weight, bias).compute())
    dist.barrier()  # no process exits while the other still reads from it
    dist.destroy_process_group()
    return figures, metric.totals


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns: this rank has not updated the metric
        own = one_of_two(0, str(tmp_path))
    assert other.wait(timeout=100) == 0
    batches, weight, bias = stream(seed=5)
    whole = fed(NeuralCollapseMetric(6, 4), batches, weight, bias).compute()
    for (figures, totals), part in ((own, batches[:2]), (torch.load(tmp_path / "1.pt"), batches[2:])):
        for found in figures:
            assert_same(found, whole, 1e-12)
        assert_same(figures[1], figures[0])
        assert torch.equal(totals, fed(NeuralCollapseMetric(6, 4), part, weight, bias).totals)  # no longer synced


if __name__ == "__main__":
    torch.save(one_of_two(1, sys.argv[1]), f"{sys.argv[1]}/1.pt")
    os._exit(0)  # PyTorch's native threads can abort an interpreter that shuts down, which is not under test
