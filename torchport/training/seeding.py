"""The global random generators, which dropout and stochastic depth use: seeded again for every step.

As with batches, all draws depend on (seed, epoch, step, process) alone. A run resumes at any step with the same
numbers, whatever evaluations, worker processes or other libraries draw in between, and stores no generator state.
"""

from __future__ import annotations

import numpy as np
import torch

DRAWN = 3  # number of this stream of random numbers; `data.mixing` has others


def seed_step(device: torch.device, seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seed the generators of the CPU and of the device for one step of training, without synchronising.

    >>> cpu = torch.device("cpu")
    >>> seed_step(cpu, seed=0, epoch=1, step=5)
    >>> first = torch.rand(2)
    >>> seed_step(cpu, seed=0, epoch=1, step=5)
    >>> torch.equal(torch.rand(2), first)
    True
    """
    value = int(np.random.SeedSequence([seed, epoch, step, rank, DRAWN]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
