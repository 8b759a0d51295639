"""The processes of one run, through Accelerate: each has its share of a batch, sums go over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class Processes:
    """Who else works on this run: one process, or as many as `accelerate launch` or `torchrun` started.

    Args:
        cpu: sum on the CPU (gloo) even where there are GPUs.
    """

    def __init__(self, cpu: bool) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=cpu)
        self.device: torch.device = self._state.device if self._state.num_processes > 1 else torch.device("cpu")
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index
        self.local_index: int = self._state.local_process_index

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a batch that all processes know."""
        return items[self.index :: self.count]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        from accelerate.utils import reduce

        return tensor if self.count == 1 else reduce(tensor, "sum")

    def whole(self, mine: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
        """Numbers (size,) of a whole batch from each process's numbers of its share, on the CPU."""
        if self.count == 1:
            return mine
        every = torch.zeros(size, dtype=torch.float64, device=device)
        every[self.index :: self.count] = mine.to(device)
        return self.total(every).cpu()

    def agree(self, yes: bool) -> bool:
        """Whether all processes say yes."""
        return int(self.total(torch.tensor([int(yes)], device=self.device))) == self.count

    def wait(self) -> None:
        """Until all are here."""
        self._state.wait_for_everyone()
