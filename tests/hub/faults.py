"""What can go wrong with a request, in the order in which it can."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .wire import Reply


@dataclass
class Fault:
    """Something that happens to the next `times` requests whose method and path fit."""

    method: str
    path: re.Pattern[str]
    times: int

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is one of them; if so one fewer is left."""
        if self.times < 1 or method != self.method or not self.path.search(path):
            return False
        self.times -= 1
        return True


@dataclass
class Fail(Fault):
    """The answer is `reply`, and the Hub does nothing."""

    reply: Reply


@dataclass
class Cut(Fault):
    """The connection is reset once `after` bytes of the body have arrived (or all of it has); the Hub does nothing."""

    after: int


@dataclass
class Race(Fault):
    """Somebody else's `act` takes place just before the Hub does what was asked."""

    act: Callable[[], object]


@dataclass
class Lose(Fault):
    """The Hub does what was asked, and the connection is reset before it can say so."""


class Faults:
    """The faults still to come."""

    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._pending.append(fault)

    def take(self, kind: type[Fault], method: str, path: str) -> Fault | None:
        """The first pending fault of this kind that fits the request, counted as used."""
        return next((f for f in self._pending if isinstance(f, kind) and f.takes(method, path)), None)

    def pending(self) -> list[Fault]:
        """Those that have not happened as often as they should: a test that ends with some tested less than it says."""
        return [fault for fault in self._pending if fault.times > 0]

    def clear(self) -> None:
        self._pending.clear()
