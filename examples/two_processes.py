"""The nearest-ETF head in two processes that train as one: seconds on a CPU.

    torchrun --nproc-per-node 2 examples/two_processes.py

The head sums class means over all processes, so that each solves the same problem. DistributedDataParallel averages the
gradients. The rest of the loop is that of one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from nearest_etf import Classifier, ImplicitETFHead

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, processes = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same weights, and the same order of the images, in every process

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
train_images, train_labels = images[~held_out], labels[~held_out]

backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
model = Classifier(backbone, ImplicitETFHead(num_features=64, num_classes=10))
parallel = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

parallel.train()
for _ in range(6):
    for batch in torch.randperm(len(train_labels)).split(64):
        if len(batch) == 64:  # each process takes an equal share
            index = batch[rank::processes]
            loss = F.cross_entropy(parallel(train_images[index], train_labels[index]), train_labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

with torch.no_grad():
    accuracy = float((model.eval()(images[held_out]).argmax(1) == labels[held_out]).float().mean())
frames: list[torch.Tensor] = [torch.empty_like(model.head.frame) for _ in range(processes)]
dist.all_gather(frames, model.head.frame)
if rank == 0:
    apart = max(float((frame - frames[0]).abs().max()) for frame in frames)
    print(f"{processes} processes: test accuracy {100 * accuracy:.1f} %; frames differ by {apart:.0e}", flush=True)
dist.destroy_process_group()
