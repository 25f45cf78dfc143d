"""Data-parallel training: one process with one thread on each core.

Networks as small as these gain little from a second thread (their layers are too short to be worth splitting);
two processes that average their gradients after every step are faster.
"""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist


def run(work: Callable, workers: int, *args) -> None:
    """Calls `work(*args)` in `workers` processes that can average gradients; returns when all have ended."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29533")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(_start, (work, workers, args), nprocs=workers)


def _start(rank: int, work: Callable, workers: int, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    work(*args)
    dist.barrier()
    dist.destroy_process_group()


def rank() -> int:
    """This process's number; the first one, 0, prints and saves."""
    return dist.get_rank()


def from_first(value: float) -> float:
    """The first process's value, in all processes."""
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
