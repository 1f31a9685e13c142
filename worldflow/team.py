"""Training by several processes at once, as torchrun starts them: one per GPU, or a few on CPU cores.

    torchrun --nproc-per-node 4 -m worldflow train data/task --out runs/task

Every process holds the whole model, draws batches of its own and takes the same step along the mean of all gradients
(`torch.distributed`: NCCL on GPUs, Gloo on CPUs). The first one, rank 0, leads: it writes, says when to stop, and
encodes the recordings, which the others read from the run's folder; on several machines that must be a shared one.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ALONE", "Team"]

PATIENCE = timedelta(days=1)
"""How long the others wait for what the leader does alone, as encoding a large data set."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of one training, as one of them sees them.

    Args:
        rank: Which one this is, from 0, the leader.
        size: How many there are.
        device: Where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def of(device: torch.device) -> Team:
        """The team that torchrun started this process in; alone, where it did not.

        Args:
            device: Where to compute; of a GPU without a number, each process takes its own.

        Raises:
            ValueError: If there are fewer GPUs than processes on this machine.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "RANK" not in os.environ or not dist.is_available():
            return Team(rank=0, size=1, device=device)
        if device.type == "cuda":
            local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= found:
                here = os.environ.get("LOCAL_WORLD_SIZE", str(size))
                raise ValueError(f"torchrun started {here} processes here for {found} GPUs; --nproc-per-node {found}")
            torch.cuda.set_device(local if device.index is None else device.index)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            atexit.register(_leave)
        return Team(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and decides."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        self._sum(torch.zeros(1, device=self.device))

    def told(self, value: float) -> float:
        """The leader's value, the same for all."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(said, src=0)
        return float(said)

    def share(self, module: nn.Module) -> None:
        """Give all of them the leader's parameters and statistics."""
        if self.size > 1:
            for value in module.state_dict().values():
                dist.broadcast(value.detach(), src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the mean over all processes in place of every gradient."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        whole = self._sum(torch.cat([gradient.reshape(-1) for gradient in gradients])) / self.size
        for gradient, mean in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def seed(self, seed: int, *, step: int = 0) -> int:
        """A seed of its own for each process, the given one for the leader; another after so many steps."""
        return seed if self.leads else (seed + 1_000_003 * self.rank + 7_919 * step) % 2**63

    def _sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values


ALONE = Team(rank=0, size=1, device=torch.device("cpu"))
"""No team."""


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
