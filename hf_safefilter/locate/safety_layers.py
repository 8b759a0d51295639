"""What a search for safety layers found: blocks, layers, the numbers it was found by, or why there is nothing."""

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
    """The blocks that carry safety, as one method finds them.

    Attributes:
        method: "gap", "scaling" or "bounds".
        first: lowest block of the range; None where there is no signal.
        last: highest block of the range, included.
        why: "" or why no blocks could be told: then nothing may be built on this result.
        table: one row a block (for bounds: a range), with every number looked at.
        model: what was searched: name, revision, dtype.
        facts: options, prompts (numbers and digests, never texts), counts, cost.
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
    def blocks(self) -> tuple[int, ...]:
        """The blocks found: what is changed, 0..L-1; empty where there is no signal."""
        return tuple(range(self.first, self.last + 1)) if self.signal else ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that these blocks put out: what is read, `hidden_states[block + 1]`."""
        return tuple(block + 1 for block in self.blocks)

    @property
    def layer(self) -> int:
        """The layer to read scores at: the output of the last of the blocks, where what they do is done.

        Raises:
            DataError: there is no signal.
        """
        self.require()
        return self.layers[-1]

    @property
    def how(self) -> str:
        """How the layer was found, in a sentence."""
        ways = {
            "gap": "the angular gap between normal and malicious prompts",
            "scaling": "the block whose loudness refusals follow (LARF's scaling search)",
            "bounds": "the blocks whose scaling moves refusals most (progressive localisation)",
        }
        asked = ", ".join(
            f"{one['count']} {kind.replace('_', '-')}" for kind, one in self.facts.get("prompts", {}).items()
        )
        cost = f"; {asked} prompts, {self.facts['seconds']} s" if "seconds" in self.facts else ""
        return f"{ways[self.method]}: blocks {self.first} to {self.last}{cost}"

    def require(self) -> SafetyLayers:
        """This result; raises where it holds no signal.

        Raises:
            DataError: there is no signal.
        """
        if not self.signal:
            raise DataError(
                f"no safety layers were found in {self.model.get('model', 'this model')} by the method {self.method!r}",
                found=self.why,
                fix="use an aligned (instruction-tuned) model, other prompts or another method; or name the layer",
            )
        return self

    def shown(self) -> list[dict[str, Any]]:
        """The table for printing: numbers rounded, an interval in one column, what was found marked."""
        rows = []
        for row in self.table:
            one = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
            if "low" in one:  # differences of two columns that stand there are left to the file
                one = {name: value for name, value in one.items() if "-" not in name}
                one["interval"] = " ".join(f"{one.pop(end):+.2f}".replace("0.", ".") for end in ("low", "high"))
            rows.append(one | {"": "<" if self._is_found(row) else ""})
        return rows

    def _is_found(self, row: Mapping[str, Any]) -> bool:
        if "block" in row:
            return row["block"] in self.blocks
        return self.signal and (row["first"], row["last"]) == (self.first, self.last)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` reads them and cards show them."""
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
        """The result that `to_json` wrote.

        Raises:
            IntegrityError: it did not.
        """
        try:
            if body["version"] != _VERSION:
                raise IntegrityError(f"a search result of version {body['version']}", fix="run the search again")
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
            raise IntegrityError("that is no search result", found=str(error), fix="run the search again") from error

    def save(self, folder: Path | str) -> None:
        """Write ``locate.json`` into `folder`; other files stay."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_text(folder / FILE, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> SafetyLayers:
        """The result saved in `folder`.

        Raises:
            MissingError: none there.
            IntegrityError: a file that is no result.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise MissingError(f"{folder} holds no {FILE}", fix="search first: hf-safefilter locate --help")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{path} is not JSON", fix="run the search again") from error
        return cls.from_json(body)
