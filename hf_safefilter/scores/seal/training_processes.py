"""The processes of one run, through Accelerate: each computes its share of a batch, sums are over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

import torch

T = TypeVar("T")


class Processes:
    """The processes of this run: this one alone, or those that `accelerate launch` or `torchrun` started.

    Args:
        cpu: Compute sums on the CPU (gloo) even where there are GPUs.
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
        """Whether this is the process that writes files and shows progress."""
        return self.index == 0

    @overload
    def share(self, items: torch.Tensor) -> torch.Tensor: ...

    @overload
    def share(self, items: Sequence[T]) -> Sequence[T]: ...

    def share(self, items: Any) -> Any:
        """This process's share of a batch that all processes know."""
        return items[self.index :: self.count]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        from accelerate.utils import reduce

        return tensor if self.count == 1 else reduce(tensor, "sum")

    def whole(self, own: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
        """The values (size,) of a whole batch, on the CPU, from the values that each process has for its own share."""
        if self.count == 1:
            return own
        values = torch.zeros(size, dtype=torch.float64, device=device)
        values[self.index :: self.count] = own.to(device)
        return self.total(values).cpu()

    def agree(self, value: bool) -> bool:
        """Whether `value` is true in all processes."""
        return int(self.total(torch.tensor([int(value)], device=self.device))) == self.count

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        self._state.wait_for_everyone()
