"""The global random generators, from which dropout and stochastic depth draw: seeded anew for every step.

As with the batches, what is drawn comes from (seed, epoch, step, process) alone: a run goes on at any step with the
same numbers, whatever evaluations, worker processes or other libraries have drawn in between, and keeps no state.
"""

from __future__ import annotations

import numpy as np
import torch

DRAWN = 3  # the stream of random numbers, beside those of `data.mixing`


def seed_step(device: torch.device, seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seed the generators of the CPU and of the device for one step of training, without waiting for the device.

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
