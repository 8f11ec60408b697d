"""Neural collapse as a metric of torchmetrics (tested with 1.9), which moves, gathers and pickles its state.

The sums of a `NeuralCollapseMeter` are relative to its origins and cannot be added separately. So the state is one
vector with all of them, and its reduction merges meters: the result over processes is that of one process up to
rounding in float64.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..any_model import OF_THE_WEIGHT
from ..collapse import NeuralCollapseMeter

SECOND_PASS = (
    "nc4",
    "cosine_margin",
    "cosine_margin_std",
    "numerical_rank",
)  # need single samples


class NeuralCollapseMetric(Metric):
    """The metrics of `NeuralCollapseMeter` as a metric of torchmetrics.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.
    settings
        Arguments of `torchmetrics.Metric`: `process_group`, `sync_on_compute`, …

    Attributes
    ----------
    totals : (K(3d+3) + d² + 1,) float64 state
        The sums of the meter, and the last classifier.

    Notes
    -----
    NC4 and the cosine margins need a second pass over the samples: `measure_collapse` and the Lightning callback
    compute them; this metric does not. `metric(features, labels)`, torchmetrics' `forward`, also computes the metrics
    of that batch, which must contain two classes; `metric.update` does not. Give arguments to a `MetricCollection` by
    name, since each metric selects those of its `update`.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> weight = torch.tensor(simplex_etf(3))
    >>> metric = NeuralCollapseMetric(num_features=3, num_classes=3)
    >>> for labels in torch.arange(12).remainder(3).split(5):
    ...     metric.update(2 * weight[labels], labels, weight)
    >>> figures = metric.compute()
    >>> figures["nc1"].item(), round(figures["nc2"].item(), 6)
    (0.0, 0.0)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    totals: Tensor

    def __init__(self, num_features: int, num_classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_features, self.num_classes = num_features, num_classes
        empty = NeuralCollapseMeter(num_features, num_classes)
        zeros = empty.sums, empty.squares
        self.add_state(
            "totals",
            _packed(empty, *zeros),
            dist_reduce_fx=partial(_merged, num_features=num_features, num_classes=num_classes),
        )

    def update(
        self, features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        features : (B, d) floating point
            The input of the classifier: for a head of this package, `head.normalise(features)`.
        labels : (B,) int64
        weight : (K, d), optional
        bias : (K,), optional
            The classifier; the last one given is used. Without any, the metrics of W are omitted.

        Raises
        ------
        ValueError
            If shapes disagree or a label is not in 0…K−1.
        """
        K, d = self.num_classes, self.num_features
        for name, value, shape in (("weight", weight, (K, d)), ("bias", bias, (K,))):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}, a row for each class.")
        if self.totals.is_inference() and not torch.is_inference_mode_enabled():
            self.totals = self.totals.clone()  # an inference tensor, from a reset in inference mode, is read-only here
        meter, W, b = _unpacked(self.totals, d, K)
        meter.update(features, labels)
        self.totals[0] = meter.unit
        self.totals[1 : K + 1] = meter.counts  # the other sums are views
        if weight is not None:
            W.copy_(weight.detach())
            b.copy_(torch.zeros_like(b) if bias is None else bias.detach())

    def compute(self) -> dict[str, Tensor]:
        """The available metrics, () float64 each, by their names in `NeuralCollapse`.

        Raises
        ------
        ValueError
            If no sample has been seen, or as `NeuralCollapseMeter.compute`.
        """
        meter, W, b = _unpacked(self.totals, self.num_features, self.num_classes)
        if not meter.counts.any():
            raise ValueError("no sample has been seen: call metric.update(features, labels, weight) before compute().")
        given = bool(W.any())
        figures = asdict(meter.compute(W if given else torch.eye(*W.shape), b))
        unknown = {*SECOND_PASS, *(() if given else OF_THE_WEIGHT)}
        return {
            name: self.totals.new_tensor(value)
            for name, value in figures.items()
            if isinstance(value, float) and name not in unknown
        }


def _unpacked(totals: Tensor, num_features: int, num_classes: int) -> tuple[NeuralCollapseMeter, Tensor, Tensor]:
    """A meter, W (K, d) and b (K,) as views of the state, except the meter's unit and counts, which are copies."""
    d, K = num_features, num_classes
    unit, counts, squares, bias, *matrices, scatter = totals.split([1, K, K, K, K * d, K * d, K * d, d * d])
    meter = NeuralCollapseMeter(d, K, totals.device)
    meter.unit, meter.counts, meter.squares = unit[0].clone(), counts.long(), squares
    meter.origins, meter.sums, weight = (matrix.view(K, d) for matrix in matrices)
    meter.scatter = scatter.view(d, d)
    meter._begun = bool(meter.unit > 0)
    return meter, weight, bias


def _packed(meter: NeuralCollapseMeter, weight: Tensor, bias: Tensor) -> Tensor:
    """The state as one vector; float64 represents the counts exactly up to 2⁵³."""
    parts = meter.unit, meter.counts, meter.squares, bias, meter.origins, meter.sums, weight, meter.scatter
    return torch.cat([part.double().flatten() for part in parts])


def _merged(states: Tensor, num_features: int, num_classes: int) -> Tensor:
    """One state from the states (P, n) of P processes: the meters merged in this order, and the last classifier."""
    whole = NeuralCollapseMeter(num_features, num_classes, states.device)
    weight, bias = torch.zeros_like(whole.sums), torch.zeros_like(whole.squares)
    for state in states:
        meter, W, b = _unpacked(state, num_features, num_classes)
        whole.merge(meter)
        if W.any():
            weight, bias = W, b
    return _packed(whole, weight, bias)
