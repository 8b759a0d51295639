"""The result of a search for safety layers: blocks, layers, the numbers behind them, or why there is no signal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_safefilter.errors import DataError, IntegrityError, MissingError
from hf_safefilter.storage.atomic import atomic_text

FILE = "locate.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SafetyLayers:
    """The blocks that carry safety, as found by one method.

    Attributes:
        method: Method of the search, "gap", "scaling" or "bounds".
        first: Lowest block of the range; None without a signal.
        last: Highest block of the range, included; None without a signal.
        why: Why there is no signal, in which case the result must not be used; "" if there is one.
        table: One row a block (for bounds, a range) with every number measured.
        model: Name, revision and dtype of the model searched.
        facts: Options, prompts (numbers and digests, never texts), counts and cost.
    """

    method: str
    first: int | None
    last: int | None
    why: str
    table: tuple[Mapping[str, Any], ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def signal(self) -> bool:
        """Whether blocks were found."""
        return self.first is not None

    @property
    def block_range(self) -> tuple[int, int]:
        """First and last block of the range, both included.

        Raises:
            DataError: There is no signal.
        """
        if self.first is None or self.last is None:
            raise DataError(
                f"no safety layers were found in {self.model.get('model', 'this model')} by the method {self.method!r}",
                found=self.why,
                fix="use an aligned (instruction-tuned) model, other prompts or another method; or name the layer",
            )
        return self.first, self.last

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks of the range, numbered 0..L-1; empty without a signal. Blocks are what is scaled or frozen."""
        if not self.signal:
            return ()
        first, last = self.block_range
        return tuple(range(first, last + 1))

    @property
    def layers(self) -> tuple[int, ...]:
        """The outputs of these blocks, `hidden_states[block + 1]`. Layers are what is read."""
        return tuple(block + 1 for block in self.blocks)

    @property
    def layer(self) -> int:
        """The layer to read for scores: the output of the last block of the range.

        Raises:
            DataError: There is no signal.
        """
        return self.block_range[1] + 1

    @property
    def how(self) -> str:
        """How the layer was found, in words."""
        ways = {
            "gap": "the angular gap between normal and malicious prompts",
            "scaling": "the block whose loudness refusals follow (LARF's scaling search)",
            "bounds": "the blocks whose scaling moves refusals most (progressive localisation)",
        }
        prompts = ", ".join(
            f"{record['count']} {kind.replace('_', '-')}" for kind, record in self.facts.get("prompts", {}).items()
        )
        cost = f"; {prompts} prompts, {self.facts['seconds']} s" if "seconds" in self.facts else ""
        found = "no signal" if self.first is None else f"blocks {self.first} to {self.last}"
        return f"{ways[self.method]}: {found}{cost}"

    def require(self) -> SafetyLayers:
        """This result, if it has a signal.

        Raises:
            DataError: There is no signal.
        """
        _ = self.block_range
        return self

    def shown(self) -> list[dict[str, Any]]:
        """The table for printing: rounded numbers, an interval in one column, the blocks of the range marked."""
        lines = []
        for row in self.table:
            line = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
            if "low" in line:  # the differences between two columns shown are only in the file
                line = {name: value for name, value in line.items() if "-" not in name}
                line["interval"] = " ".join(f"{line.pop(end):+.2f}".replace("0.", ".") for end in ("low", "high"))
            lines.append(line | {"": "<" if self._in_range(row) else ""})
        return lines

    def _in_range(self, row: Mapping[str, Any]) -> bool:
        if "block" in row:
            return row["block"] in self.blocks
        return self.signal and (row["first"], row["last"]) == (self.first, self.last)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as read by `from_json` and shown on cards."""
        return {
            "version": _VERSION,
            "method": self.method,
            "signal": self.signal,
            "why": self.why,
            "first_block": self.first,
            "last_block": self.last,
            "blocks": list(self.blocks),
            "layers": list(self.layers),
            "layer": self.layers[-1] if self.signal else None,
            "how": self.how,
            "model": dict(self.model),
            "facts": dict(self.facts),
            "table": [dict(row) for row in self.table],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SafetyLayers:
        """The result from the values of `to_json`.

        Raises:
            IntegrityError: `body` is not the output of `to_json`, or of another version.
        """
        try:
            if body["version"] != _VERSION:
                raise IntegrityError(
                    f"the search result has version {body['version']}, which cannot be read", fix="run the search again"
                )
            return cls(
                body["method"],
                body["first_block"],
                body["last_block"],
                body["why"],
                tuple(body["table"]),
                body["model"],
                body["facts"],
            )
        except (KeyError, TypeError) as error:
            raise IntegrityError("this is not a search result", found=str(error), fix="run the search again") from error

    def save(self, folder: Path | str) -> None:
        """Write ``locate.json`` into `folder`; other files there are left alone."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_text(folder / FILE, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> SafetyLayers:
        """The result saved in `folder`.

        Raises:
            MissingError: `folder` holds no result.
            IntegrityError: The file is not a search result.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise MissingError(f"{folder} holds no {FILE}", fix="run the search first: hf-safefilter locate --help")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{path} is not JSON", fix="run the search again") from error
        return cls.from_json(body)
