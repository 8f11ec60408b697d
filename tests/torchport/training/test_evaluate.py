"""The evaluation pass against the reference on the same features: by batches, in several processes, at its limits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.reference import neural_collapse
from nearest_etf.torchport import Classifier, Head, ImplicitETFHead
from nearest_etf.torchport.training import evaluate as module
from nearest_etf.torchport.training.evaluate import Evaluation, evaluate

D, K, N = 13, 11, 200
SECOND_PASS = {"nc4", "cosine_margin", "cosine_margin_std"}


def trained_model(num_classes: int = K) -> Classifier[ImplicitETFHead]:
    """The identity as the backbone, and a head after one batch of the features."""
    model = Classifier(nn.Flatten(), ImplicitETFHead(D, num_classes))
    features, labels = samples(num_classes, seed=1)
    model(features, labels)
    return model


def samples(num_classes: int = K, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clustered features (N, D, 1, 1) and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % num_classes
    centres = torch.randn(num_classes, D, generator=torch.Generator().manual_seed(7))
    return (centres[labels] + torch.randn(N, D, generator=generator))[..., None, None], labels


def batches(size: int, num_classes: int = K) -> list[tuple[Tensor, Tensor]]:
    features, labels = samples(num_classes)
    return list(zip(features.split(size), labels.split(size), strict=True))


def expected(model: Classifier[Any], features: Tensor, labels: Tensor) -> dict[str, float]:
    """Every metric from its definition."""
    head: Head = model.head
    h = head.normalise(features.flatten(1))
    logits = F.linear(h, head.weight, head.bias)
    collapse = asdict(neural_collapse(h.numpy(), labels.numpy(), head.weight.numpy(), head.bias.numpy()))
    del collapse["margin_histogram"]
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    figures = {"loss": float(F.cross_entropy(logits, labels)), "accuracy": float((ranks == 0).double().mean())}
    return figures | {"top5": float((ranks < 5).double().mean())} | collapse


def close(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("size", [7, N])
def test_metrics_equal_those_of_the_reference(size: int) -> None:
    model = trained_model()
    evaluation = evaluate(model, batches(size), numerical_rank=True)
    features, labels = samples()
    close(evaluation.figures, expected(model, features, labels))
    h = model.head.normalise(features.flatten(1)).double()
    for c in range(K):
        torch.testing.assert_close(evaluation.class_mean_rows[c], h[labels == c].mean(0), rtol=1e-6, atol=1e-7)
    reference = neural_collapse(h.numpy(), labels.numpy(), model.head.weight.numpy(), model.head.bias.numpy())
    np.testing.assert_array_equal(evaluation.margin_histogram, reference.margin_histogram)


def test_half_precision_features_are_measured_in_float32() -> None:
    model = trained_model()
    rounded = [(features.bfloat16(), labels) for features, labels in batches(50)]
    features, labels = samples()
    wanted = expected(model, features.bfloat16().float(), labels)
    found = evaluate(model, rounded, numerical_rank=True).figures
    for name in ("loss", "accuracy", "top5"):  # of logits in the features' dtype
        assert found.pop(name) == pytest.approx(wanted.pop(name), rel=0.02)
    close(found, wanted)


def test_top5_is_reported_from_ten_classes_on() -> None:
    assert "top5" in evaluate(trained_model(10), batches(64, 10)).figures
    assert "top5" not in evaluate(trained_model(9), batches(64, 9)).figures


def test_the_mode_of_the_model_is_restored() -> None:
    model = trained_model()
    for training in (True, False):
        model.train(training)
        evaluate(model, batches(64))
        assert model.training is training


def test_large_splits_keep_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_model()
    whole = evaluate(model, batches(32), numerical_rank=True)
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * 32 * D * 4)
    streamed = evaluate(model, batches(32), numerical_rank=True)
    left_out = SECOND_PASS | {"numerical_rank"}
    assert streamed.figures == {name: value for name, value in whole.figures.items() if name not in left_out}
    assert whole.figures.keys() >= left_out
    assert streamed.margin_histogram.sum() == 0
    assert whole.margin_histogram.sum() == N


def test_numerical_rank_is_an_option() -> None:
    assert "numerical_rank" not in evaluate(trained_model(), batches(64)).figures


def test_undefined_and_non_finite_metrics_are_left_out() -> None:
    model = trained_model()
    features, labels = samples()
    one_class = evaluate(model, [(features[labels == 3], labels[labels == 3])])
    assert one_class.figures.keys() == {"loss", "accuracy", "top5"}
    assert one_class.class_mean_rows.isnan().all(1).tolist() == [c != 3 for c in range(K)]

    coincident = evaluate(model, [(features[:1].expand(N, D, 1, 1), labels)])
    assert "nc1" not in coincident.figures  # infinite
    assert coincident.figures["nc2_means"] == 1

    broken = evaluate(model, [(torch.full_like(features, torch.nan), labels)])
    assert broken.figures.keys() == {"accuracy", "top5"}


def evaluated_in_a_process(rank: int, world_size: int, folder: str) -> None:
    """Evaluate a share of the samples; of three processes the last one has none."""
    model = trained_model()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    mine = batches(25)[rank::2] if rank < 2 else []
    evaluation = evaluate(model, mine, numerical_rank=True)
    torch.save(
        [evaluation.figures, evaluation.class_mean_rows, evaluation.margin_histogram.tolist()], f"{folder}/{rank}"
    )


def test_several_processes_evaluate_all_batches(tmp_path: Path) -> None:
    world_size = 3
    commands = [[sys.executable, __file__, str(rank), str(world_size), str(tmp_path)] for rank in range(world_size)]
    # New processes: a fork would inherit locks of the threads that earlier tests have started.
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in running] == [0] * world_size
    alone = evaluate(trained_model(), batches(25))
    for rank in range(world_size):
        figures, rows, histogram = torch.load(tmp_path / str(rank))
        assert figures == pytest.approx(alone.figures, rel=1e-6, abs=1e-9)  # numerical_rank takes one process
        torch.testing.assert_close(rows, alone.class_mean_rows)
        assert histogram == alone.margin_histogram.tolist()


def test_prefixed() -> None:
    evaluation = Evaluation({"loss": 1.0, "nc1": 0.5}, torch.zeros(2, 2), np.zeros(200, dtype=np.int64))
    assert evaluation.prefixed("val") == {"val_loss": 1.0, "val_nc1": 0.5}


if __name__ == "__main__":
    evaluated_in_a_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    dist.barrier()  # no process leaves while the other still reads from it
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's native threads can abort an interpreter that shuts down, which is not under test
