"""Marks around the control tokens that a row spells, in everything that its template is handed."""

from __future__ import annotations

from typing import Any

from hf_safefilter.model.chat_template import Turn
from hf_safefilter.model.control_tokens import Controls


class Marking:
    """Marks the texts in a value, at any depth; `changed` says whether there was anything to mark."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self.changed = False

    def turn(self, turn: Turn) -> Turn:
        """A copy of a message so marked; its role is one of a few words, by which a template tells turns apart."""
        return self.marked(turn) | {"role": turn["role"]}

    def marked(self, value: Any, apart: bool = True) -> Any:
        """A copy in which every text, keys of dicts included, has its control tokens between marks.

        Args:
            value: A plain value.
            apart: See `Controls.mark`; keys are never marked at their ends.
        """
        if isinstance(value, str):
            return self._text(value, apart)
        if isinstance(value, dict):
            return {self._text(str(key), False): self.marked(inner, apart) for key, inner in value.items()}
        return [self.marked(inner, apart) for inner in value] if isinstance(value, list) else value

    def _text(self, text: str, apart: bool) -> str:
        clean = self.cleaned(text)
        marked = self._controls.mark(clean, apart)
        self.changed |= marked != clean
        return marked

    @staticmethod
    def cleaned(text: str) -> str:
        """Text a tokenizer can take: lone surrogates become the replacement character."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text
