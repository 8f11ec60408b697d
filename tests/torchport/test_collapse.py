"""The streaming meter against the reference: any batches, merging, two processes, nearly collapsed features."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nearest_etf.reference import NeuralCollapse, neural_collapse, simplex_etf
from nearest_etf.torchport import NeuralCollapseMeter
from nearest_etf.torchport.collapse_metrics import eigenpairs, numerical_rank

SECOND_PASS = ("nc4", "cosine_margin", "cosine_margin_std")


class Problem(NamedTuple):
    features: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor


def make_problem(
    seed: int, num_classes: int = 5, num_features: int = 9, size: int = 120, spread: float = 0.5
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    labels = torch.randint(num_classes, (size,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    centres = 3 + torch.randn(num_classes, num_features, **options)  # type: ignore[call-overload]
    noise = torch.randn(size, num_features, **options)  # type: ignore[call-overload]
    weight = torch.randn(num_classes, num_features, **options)  # type: ignore[call-overload]
    bias = torch.randn(num_classes, **options)  # type: ignore[call-overload]
    return Problem(centres[labels] + spread * noise, labels, weight, bias)


def measure_stream(problem: Problem, batch_size: int, dtype: torch.dtype = torch.float64) -> NeuralCollapse:
    """Both passes in batches, and the numerical rank."""
    X, y, W, b = problem
    X = X.to(dtype)
    meter = NeuralCollapseMeter(*W.T.shape)
    for features, labels in zip(X.split(batch_size), y.split(batch_size), strict=True):
        meter.update(features, labels)
    second = meter.second_pass(W, b)
    for features, labels in zip(X.split(batch_size), y.split(batch_size), strict=True):
        second.update(features, labels)
    return replace(second.compute(), numerical_rank=numerical_rank(X, y))


def assert_agrees(
    measured: NeuralCollapse, expected: NeuralCollapse, relative: float, skip: tuple[str, ...] = ()
) -> None:
    """All metrics agree; the bound of the variability-collapse index, 1 minus a number near 1, is partly absolute."""
    for name, value in asdict(expected).items():
        if name in skip:
            continue
        absolute = 1e-3 * relative if name == "variability_collapse" else 1e-15
        np.testing.assert_allclose(
            getattr(measured, name), value, rtol=relative, atol=absolute, err_msg=name, equal_nan=True
        )


@pytest.mark.parametrize(
    ("num_classes", "num_features", "size"),
    [(5, 9, 120), (9, 4, 200), (4, 3, 50), (20, 300, 700), (3, 40, 12)],
)
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-5])
def test_meter_agrees_with_the_reference(num_classes: int, num_features: int, size: int, spread: float) -> None:
    problem = make_problem(0, num_classes, num_features, size, spread)
    expected = neural_collapse(*problem)
    assert_agrees(measure_stream(problem, 32), expected, 1e-9)


@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_float32_features(spread: float) -> None:
    problem = make_problem(1, 5, 30, 400, spread)
    expected = neural_collapse(*problem)
    measured = measure_stream(problem, 64, torch.float32)
    assert_agrees(measured, expected, 1e-4, skip=("margin_histogram",))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 130))
def test_batches_of_any_size_and_order(seed: int, batch_size: int) -> None:
    problem = make_problem(seed % 7)
    order = torch.randperm(len(problem.labels), generator=torch.Generator().manual_seed(seed))
    shuffled = problem._replace(features=problem.features[order], labels=problem.labels[order])
    assert_agrees(measure_stream(shuffled, batch_size), neural_collapse(*problem), 1e-9)


def test_exactly_collapsed_features_have_zero_spread() -> None:
    weight = torch.tensor(simplex_etf(6), dtype=torch.float32)
    labels = torch.arange(6).repeat(50)
    meter = NeuralCollapseMeter(6, 6)
    for batch in labels.split(37):
        meter.update(5 * weight[batch] + 0.1, batch)
    measured = meter.compute(weight)
    assert (measured.nc1, measured.cdnv) == (0.0, 0.0)
    assert measured.variability_collapse < 1e-12
    assert measured.nc2_means < 1e-6


@pytest.mark.parametrize("cut", [0, 1, 50, 120])
def test_merge(cut: int) -> None:
    problem = make_problem(3, spread=1e-3)
    X, y, W, b = problem
    first, second = NeuralCollapseMeter(*W.T.shape), NeuralCollapseMeter(*W.T.shape)
    order = torch.argsort(y)  # so that some class is in one half only
    first.update(X[order[:cut]], y[order[:cut]])
    second.update(X[order[cut:]], y[order[cut:]])
    first.merge(second)
    again, rest = first.second_pass(W, b), first.second_pass(W, b)
    again.update(X[:cut], y[:cut])
    rest.update(X[cut:], y[cut:])
    again.merge(rest)
    assert_agrees(again.compute(), neural_collapse(*problem), 1e-9, skip=("numerical_rank",))


def test_metrics_of_the_second_pass_are_nan_after_one_pass() -> None:
    problem = make_problem(4)
    meter = NeuralCollapseMeter(*problem.weight.T.shape)
    meter.update(problem.features, problem.labels)
    measured = meter.compute(problem.weight, problem.bias)
    expected = neural_collapse(*problem)
    unknown: dict[str, Any] = dict.fromkeys((*SECOND_PASS, "numerical_rank"), float("nan"))
    assert_agrees(measured, replace(expected, **unknown), 1e-9, skip=("margin_histogram",))
    assert measured.margin_histogram.sum() == 0


def reduce_in_process(rank: int, folder: str) -> None:
    """One of two processes, with half of the data: both passes are reduced, and rank 1 writes the metrics."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    X, y, W, b = make_problem(5, spread=1e-3)
    X, y = X[rank::2], y[rank::2]
    meter = NeuralCollapseMeter(*W.T.shape)
    meter.update(X, y)
    meter.all_reduce()
    second = meter.second_pass(W, b)
    second.update(X, y)
    second.all_reduce()
    if rank == 1:
        figures = asdict(second.compute()).items()
        torch.save({k: torch.tensor(v, dtype=torch.float64) for k, v in figures}, f"{folder}/measured.pt")


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    measured = torch.load(tmp_path / "measured.pt", weights_only=True)
    expected = asdict(neural_collapse(*make_problem(5, spread=1e-3)))
    for name in expected.keys() - {"numerical_rank"}:
        absolute = 1e-12 if name == "variability_collapse" else 0.0
        np.testing.assert_allclose(measured[name].numpy(), expected[name], rtol=1e-9, atol=absolute, err_msg=name)


def test_a_second_pass_over_other_data_is_refused() -> None:
    X, y, W, b = make_problem(6)
    meter = NeuralCollapseMeter(*W.T.shape)
    meter.update(X, y)
    fewer, moved = meter.second_pass(W, b), meter.second_pass(W, b)
    fewer.update(X[:-1], y[:-1])
    with pytest.raises(ValueError, match=r"over other data: it saw \d+ samples of class \d"):
        fewer.compute()
    moved.update(X + 0.01, y)
    with pytest.raises(ValueError, match="over other data: a class mean moved"):
        moved.compute()


def test_autocast_does_not_affect_the_meter() -> None:
    problem = make_problem(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = measure_stream(problem, 50)
    assert_agrees(measured, neural_collapse(*problem), 1e-9)


def test_memory_is_that_of_the_accumulators() -> None:
    """The meter keeps at most 4(Kd + d²) numbers, for any number of samples."""
    K, d = 50, 40
    meter = NeuralCollapseMeter(d, K)
    kept = sum(t.nbytes for t in vars(meter).values() if isinstance(t, Tensor))
    for seed in range(3):
        problem = make_problem(seed, K, d, 500)
        meter.update(problem.features, problem.labels)
    assert sum(t.nbytes for t in vars(meter).values() if isinstance(t, Tensor)) == kept
    assert kept <= 4 * (K * d + d * d) * 8


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), r"expected floating \(B, 9\)"),
        (torch.zeros(4, 9), torch.zeros(4), r"expected int64 \(4,\)"),
        (torch.zeros(4, 9), torch.full((4,), 5), "span 5…5; expected 0…4"),
        (torch.zeros(4, 9).long(), torch.zeros(4).long(), "floating"),
    ],
)
def test_bad_batches_are_refused(features: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCollapseMeter(9, 5).update(features, labels)


def test_bad_input_is_refused() -> None:
    X, y, W, _ = make_problem(8)
    meter = NeuralCollapseMeter(*W.T.shape)
    with pytest.raises(ValueError, match="0 class"):
        meter.compute(W)
    meter.update(X, y)
    with pytest.raises(ValueError, match="weight is zero"):
        meter.compute(0 * W)
    with pytest.raises(ValueError, match="as the meter"):
        meter.compute(W[1:])
    with pytest.raises(ValueError, match="cannot be merged"):
        meter.merge(NeuralCollapseMeter(8, 5))
    meter.update(torch.full((1, 9), torch.nan), y[:1])
    with pytest.raises(ValueError, match="NaN"):
        meter.compute(W)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-30, torch.float32), (1e30, torch.float32), (1e-200, torch.float64), (1e200, torch.float64)],
)
def test_metrics_do_not_depend_on_the_scale_of_features(scale: float, dtype: torch.dtype) -> None:
    problem = make_problem(5)._replace(bias=torch.zeros(5, dtype=torch.float64))
    scaled = problem._replace(features=scale * problem.features)
    measured, expected = (measure_stream(p, 50, dtype) for p in (scaled, problem))
    np.testing.assert_allclose(measured.bias_offset / scale, expected.bias_offset, rtol=1e-5)
    assert_agrees(replace(measured, bias_offset=0.0), replace(expected, bias_offset=0.0), 1e-4)


def test_meters_of_different_units_merge() -> None:
    X, y, W, b = make_problem(6)
    X[60:] *= 1e-20  # another unit; negligible beside the first half
    for first_half, second_half in ((slice(0, 60), slice(60, 120)), (slice(60, 120), slice(0, 60))):
        first, second = NeuralCollapseMeter(*W.T.shape), NeuralCollapseMeter(*W.T.shape)
        first.update(X[first_half], y[first_half])
        second.update(X[second_half], y[second_half])
        assert first.unit != second.unit
        first.merge(second)
        first.merge(NeuralCollapseMeter(*W.T.shape))
        empty = NeuralCollapseMeter(*W.T.shape)
        empty.merge(first)
        for merged in (first, empty):
            torch.testing.assert_close(
                merged.class_mean_rows(), torch.stack([X[y == c].mean(0) for c in range(5)]), rtol=1e-12, atol=1e-14
            )
            unknown = (*SECOND_PASS, "numerical_rank", "margin_histogram")
            assert_agrees(merged.compute(W, b), neural_collapse(X, y, W, b), 1e-9, skip=unknown)


def test_features_that_leave_the_range_of_the_first_batch_are_refused() -> None:
    meter = NeuralCollapseMeter(4, 2)
    labels = torch.tensor([0, 1])
    meter.update(1e-30 * torch.ones(2, 4), labels)
    meter.update(1e30 * torch.ones(2, 4), labels)
    with pytest.raises(ValueError, match=r"grew beyond the range of their type after the first batch.*8e-31"):
        meter.compute(torch.eye(2, 4))


def test_eigenpairs_if_divide_and_conquer_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    X = torch.randn(9, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S = X.T @ X  # of rank 9

    def failing(_: Tensor) -> None:
        raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
            "the algorithm failed to converge"
        )

    expected = torch.linalg.eigvalsh(S)
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    values, vectors = eigenpairs(S)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(vectors * values @ vectors.T, S)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(40, dtype=torch.float64))


if __name__ == "__main__":
    reduce_in_process(int(sys.argv[1]), sys.argv[2])
    dist.barrier()  # no process exits while the other still reads from it
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's native threads can abort an interpreter that shuts down, which is not under test
