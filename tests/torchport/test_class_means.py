"""Running class means against the reference, their gradient, and bad input."""

import pytest
import torch

from nearest_etf.reference import ClassMeans as ReferenceClassMeans
from nearest_etf.torchport import ClassMeans


def test_steps_with_absent_classes_follow_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    means, reference = ClassMeans(5, 12).double(), ReferenceClassMeans(5, 12)
    for _ in range(7):
        features = torch.randn(9, 5, dtype=torch.float64, generator=generator)
        labels = torch.randint(0, 12, (9,), generator=generator)
        H, global_mean = means(features, labels)
        reference.update(features.numpy(), labels.numpy())
        torch.testing.assert_close(H, torch.from_numpy(reference.class_means))
        torch.testing.assert_close(global_mean, torch.from_numpy(reference.global_mean))
        assert means.seen.tolist() == reference.seen.tolist()
    assert int(means.steps) == reference.steps
    assert torch.equal(means.class_means, H)


def test_gradient_flows_through_the_batch_term_only() -> None:
    means = ClassMeans(3, 4).double()
    features = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(10) % 4
    first, _ = means(features, labels)
    second, _ = means(features.detach(), labels)
    assert first.requires_grad
    assert not second.requires_grad

    def update(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ClassMeans(3, 4).double()(features, labels)

    assert torch.autograd.gradcheck(update, features)


def test_exact_means_can_be_set() -> None:
    means = ClassMeans(2, 2)
    means.set_means(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert means.class_means.tolist() == [[-1.0, 1.0], [-2.0, 2.0]]
    assert means.global_mean.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"expected \(N, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0]), r"expected \(2,\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "class indices"),
        (torch.zeros(2, 3), torch.tensor([0, 2]), "run from 0 to 2; expected 0…1"),
        (torch.zeros(2, 3), torch.tensor([-1, 1]), "run from -1"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "NaN"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(features: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    means = ClassMeans(3, 2)
    with pytest.raises(ValueError, match=message):
        means(features, labels)
    assert int(means.steps) == 0
