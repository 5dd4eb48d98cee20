"""Several processes as one: shares of the work and sums over all, through accelerate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Processes:
    """This process among `count`; one process needs no accelerator."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        total = self.accelerator.reduce(flat, reduction="sum")
        start = 0
        for tensor in tensors:
            tensor.copy_(total[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0
