"""A stand-in for EmbedLayers: vectors that follow from the text, with harm planted along one axis."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_safefilter.data.conversations import as_conversations, response_of

WIDTH = 16
LAYERS = (2, "norm")
ROWS = 60
UNREADABLE = {7: "empty_response", 31: "non_finite"}


def vector_of(text: str, layer: int | str = 2) -> np.ndarray:
    """float32 (WIDTH,): noise drawn from the text, moved along axis 0 by whether it complies or refuses."""
    seed = int.from_bytes(hashlib.sha256(f"{layer}:{text}".encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    vector[0] += 8 if text.startswith("Sure") else -8 if text.startswith("Sorry") else 0
    return vector.astype(np.float32)


class StandIn:
    """The two calls that references make of an embedder."""

    def __init__(self, layers: Iterable[int | str] = LAYERS, change: Any = None) -> None:
        self.layers, self._change = tuple(layers), change

    def vectors(self, rows: Iterable[Mapping[str, Any]]) -> tuple[dict, list, list[str]]:
        read = as_conversations(rows)
        reasons = [one.reason for one in read]
        found = {}
        for layer in self.layers:
            found[layer] = np.stack(
                [
                    np.full(WIDTH, np.nan, np.float32) if one.reason else vector_of(response_of(one), layer)
                    for one in read
                ]
            )
            if self._change is not None:
                found[layer] = self._change(found[layer])
        return found, read, reasons

    def describe(self) -> dict[str, Any]:
        return {"model": "stand-in", "revision": "0" * 40, "position": "last", "layers": list(self.layers)}


def unsafe_rows(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"Do harm number {n}", "response": f"Sure, step {n} is this."} for n in range(count)]


def safe_rows(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"Do harm number {n}", "response": f"Sorry, not number {n}."} for n in range(count)]
