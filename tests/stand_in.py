"""A stand-in for EmbedLayers: vectors that follow from the text, with harm planted along half of the axes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_safefilter.cache import RowVectors
from hf_safefilter.data.conversations import Conversation, answers_in, as_conversations, response_of
from hf_safefilter.data.ragged import offsets_of
from hf_safefilter.data.spans import SPAN

WIDTH = 16
LAYERS = (2, "norm")
ROWS = 60
UNREADABLE = {7: "empty_response", 31: "non_finite"}


def vector_of(text: str, layer: int | str = 2) -> np.ndarray:
    """float32 (WIDTH,): noise drawn from the text, moved along half of the axes by whether it complies or refuses."""
    seed = int.from_bytes(hashlib.sha256(f"{layer}:{text}".encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    vector[: WIDTH // 2] += 8 if text.startswith("Sure") else -8 if text.startswith("Sorry") else 0
    return vector.astype(np.float32)


def windows_of(number: int, text: str) -> list[str]:
    """What is read of a row: its text, before, between or after up to two windows that refuse."""
    texts = [f"Sorry, window {place} of {number}." for place in range(number % 4 % 3)]
    texts.insert(number % (len(texts) + 1), text)
    return texts


class StandIn:
    """The two calls that references make of an embedder."""

    def __init__(self, layers: Iterable[int | str] = LAYERS, change: Any = None) -> None:
        self.layers, self._change = tuple(layers), change

    def vectors(self, rows: Iterable[Mapping[str, Any]]) -> tuple[RowVectors, list[Conversation]]:
        """One span a row, and none for a row that cannot be read."""
        read = as_conversations(rows)
        readable = [one for one in read if not one.reason]
        spans = np.array([(answers_in(one.messages)[-1], False, 0, 1) for one in readable], SPAN)
        texts = [response_of(one) for one in readable]
        found = {
            layer: np.array([vector_of(text, layer) for text in texts]).reshape(-1, WIDTH) for layer in self.layers
        }
        if self._change is not None:
            found = {layer: self._change(values) for layer, values in found.items()}
        counts = np.array([not one.reason for one in read], dtype=np.int64)
        reasons = np.array([one.reason for one in read], dtype=object)
        return RowVectors(offsets_of(counts), spans, found, np.zeros(len(read), bool), reasons), read

    def describe(self) -> dict[str, Any]:
        return {"model": "stand-in", "revision": "0" * 40, "position": "last", "layers": list(self.layers)}


class OfPrompts(StandIn):
    """The same, but what is read at the end of the prompt follows from the prompt."""

    def vectors(self, rows: Iterable[Mapping[str, Any]]) -> tuple[RowVectors, list[Conversation]]:
        """Rows of prompt and response that can all be read."""
        rows = list(rows)
        read, conversations = super().vectors(rows)
        for layer in self.layers:
            if str(layer).endswith("_last_prompt"):
                read.vectors[layer] = np.array([vector_of(row["prompt"], layer) for row in rows])
        return read, conversations


def unsafe_rows(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"Do harm number {n}", "response": f"Sure, step {n} is this."} for n in range(count)]


def safe_rows(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": f"Do harm number {n}", "response": f"Sorry, not number {n}."} for n in range(count)]
