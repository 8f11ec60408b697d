"""Two processes that share a batch compute the same as one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    TightFrameHead,
)
from nearest_etf.torchport.distributed import all_reduce_sum


def shared_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 8, dtype=torch.float64, generator=generator)
    return features, torch.arange(12) % 4


HEADS: list[tuple[type[Head], int]] = [(ImplicitETFHead, 8), (ClassMeanHead, 8), (TightFrameHead, 2)]  # and d


def steps(features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each head, the classifier after one step, and the gradient of this process's sum of losses."""
    return [step(kind(d, 4).double(), features[:, :d], labels) for kind, d in HEADS]


def step(head: Head, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    torch.nn.functional.cross_entropy(head(features, labels), labels, reduction="sum").backward()
    assert features.grad is not None
    return head.weight, features.grad


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    features, labels = shared_batch()
    mine = slice(0, 5) if rank == 0 else slice(5, 12)
    torch.save(steps(features[mine], labels[mine]), f"{folder}/{rank}.pt")


def several_forwards_of_two(rank: int, folder: str) -> None:
    """Two forwards and one backward under DDP, which copies rank 0's buffers to the other ranks at every forward."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/ddp", rank=rank, world_size=2)
    gradients = []
    for kind in (FixedETFHead, ImplicitETFHead, LearnedHead, ClassMeanHead, TightFrameHead):
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(Classifier(torch.nn.Linear(8, 8), kind(8, 4)))
        features, labels = (x[rank::2] for x in shared_batch())
        for _ in range(2):
            unlabelled = model(features.float() + 1, update=False)
            labelled = model(features.float(), labels)
            (unlabelled.logsumexp(1).mean() + torch.nn.functional.cross_entropy(labelled, labels)).backward()
        gradients.append(model.module.backbone.weight.grad)
    torch.save(gradients, f"{folder}/ddp-{rank}.pt")


def test_without_processes_the_sum_is_the_identity() -> None:
    x = torch.ones(3)
    assert all_reduce_sum(x) is x


def test_two_processes_solve_the_same_problem(tmp_path: Path) -> None:
    # New processes: a fork would inherit locks of threads that earlier tests started.
    running = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (weight, gradient), *of_both in zip(steps(*shared_batch()), *parts, strict=True):
        for part in of_both:
            torch.testing.assert_close(part[0], weight)
        torch.testing.assert_close(torch.cat([part[1] for part in of_both]), gradient)


def test_several_forwards_share_one_backward_under_ddp(tmp_path: Path) -> None:
    command = [sys.executable, __file__]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path), "ddp"]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for ours, theirs in zip(*(torch.load(tmp_path / f"ddp-{rank}.pt") for rank in range(2)), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.isfinite().all()


if __name__ == "__main__":
    work = several_forwards_of_two if "ddp" in sys.argv else one_of_two
    work(int(sys.argv[1]), sys.argv[2])
    dist.barrier()  # no process exits while the other still reads from it
    dist.destroy_process_group()
    os._exit(0)  # PyTorch's native threads can abort an interpreter that shuts down, which is not under test
