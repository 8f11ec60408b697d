"""Tests that need a GPU: no synchronisation, CUDA graphs, autocast, agreement with the CPU. Skipped without one."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearest_etf.torchport import ImplicitETFHead, nearest_etf
from nearest_etf.torchport.simplex import centred

pytestmark = pytest.mark.gpu

SIZES = [(64, 10), (512, 100)]


def batch(d: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (256,), generator=generator)
    return torch.randn(256, d, generator=generator).cuda().requires_grad_(), labels.cuda()


def trained(d: int, K: int) -> ImplicitETFHead:
    """A head after its first step, which is solved differently and may synchronise."""
    head = ImplicitETFHead(d, K).cuda()
    head(*batch(d, K))
    return head


@pytest.mark.parametrize(("d", "K"), SIZES)
def test_frame_and_gradient_agree_with_float64_on_the_cpu(d: int, K: int) -> None:
    generator = torch.Generator().manual_seed(0)
    H, G = (centred(torch.randn(d, K, generator=generator, dtype=torch.float64)) for _ in range(2))
    U0 = torch.linalg.qr(torch.randn(d, K, generator=generator, dtype=torch.float64))[0]
    answers = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        leaf = (H / H.norm()).to(device, dtype).requires_grad_()
        U = nearest_etf(leaf, U0.to(device, dtype))
        (gradient,) = torch.autograd.grad(U, leaf, G.to(device, dtype))
        answers.append((centred(U.detach()).cpu().double(), gradient.cpu().double()))
    for exact, found in zip(*answers, strict=True):
        assert float((found - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize(("d", "K"), SIZES)
def test_a_training_step_does_not_synchronise(d: int, K: int) -> None:
    head = trained(d, K)
    features, labels = batch(d, K, seed=1)
    torch.cuda.set_sync_debug_mode("error")  # every synchronisation is an error
    try:
        F.cross_entropy(head(features, labels), labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_keeps_the_head_in_float32() -> None:
    head = trained(512, 100)
    twin = copy.deepcopy(head)
    features, labels = batch(512, 100, seed=1)
    with torch.autocast("cuda", torch.bfloat16):
        head(features.bfloat16(), labels)
    twin(features.detach().bfloat16().float(), labels)
    torch.testing.assert_close(head.weight, twin.weight)


def test_a_step_replays_as_a_graph() -> None:
    head = trained(64, 10)
    twin = copy.deepcopy(head)
    features, labels = batch(64, 10, seed=1)
    state = copy.deepcopy(head.state_dict())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capturing needs a warm-up outside the graph
        for _ in range(3):
            head(features, labels).square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = head(features, labels)
    head.load_state_dict(state)
    for _ in range(3):
        graph.replay()
        wanted = twin(features, labels)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(head.frame, twin.frame)


def test_deterministic_algorithms_repeat_bit_for_bit() -> None:
    head, (features, labels) = trained(64, 10), batch(64, 10, seed=1)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (copy.deepcopy(head)(features, labels) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
