"""Fitting: two adapters of one base model, trained alike on harmful answers and on rows as they should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_safefilter.data.conversations import Conversation, as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.splits import parts_of
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.token_risk.adapter_options import DEGRADED, UTILITY, AdapterOptions
from hf_safefilter.scores.token_risk.risk_adapters import RiskAdapters, file_name, key_of, read_tokens, require_peft

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

    from hf_safefilter.model.tokens import Tokens
    from hf_safefilter.references import ReferenceIndex

    Rows: TypeAlias = Dataset | DatasetDict | Iterable[Mapping[str, Any]]


def fit_token_risk(
    references: ReferenceIndex | str,
    *,
    benign: Rows | str | Path | None = None,
    benign_license: str | None = None,
    benign_source: str | None = None,
    benign_columns: Mapping[str, str] | None = None,
    steps: int = 60,
    batch: int = 8,
    learning_rate: float = 1e-3,
    rank: int = 16,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    device: str | None = None,
) -> RiskAdapters:
    """Train a safety-degraded and a utility adapter of the model that the references were read with.

    Both start from the same weights and are trained with the same options; only their rows differ. The degraded one
    learns the unsafe references: harmful requests answered. The utility one learns `benign`; without that, the ordinary
    rows among the references; and if there are none, the safe side. If that is refusals, it is compliance that looks
    risky, harmful or not.

    Args:
        references: The index, or its digest.
        benign: Ordinary rows of the kind that the tuned model is to learn, or the name under which `load_rows` finds
            them.
        benign_license: Their licence; required with `benign`.
        benign_source: Where they come from; required with `benign` unless that is a name.
        benign_columns: Which of their columns hold prompt and response, for rows whose shape is not recognised.
        steps: Number of optimizer steps for each adapter; the paper trains two epochs on its rows.
        batch: Number of rows in a step; the paper has 64.
        learning_rate: Learning rate of AdamW, constant. The paper has 1e-5, for hundreds of steps on thousands of rows.
        rank: Rank of LoRA.
        targets: Names of the linear layers that get adapters.
        seed: Seed of the first factors and of the order of the rows.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.

    Raises:
        OptionError: An option makes no sense, licence or source are missing, or LoRA targets do not exist.
        DataError: A side has no readable row, or benign rows are among the unsafe references.
        ModelError: The model cannot be read, or the training diverged.
        MissingError: The training extra is not installed.

    Source: TOSS, arXiv 2603.01185.
    """
    require_peft()
    from hf_safefilter.model import load
    from hf_safefilter.references import ReferenceIndex

    options = AdapterOptions(steps, batch, learning_rate, rank, targets, seed)
    index = ReferenceIndex.of(references)
    facts = {name: index.embed[name] for name in ("model", "revision", "dtype", "chat_template", "max_length")}
    facts["ignore"] = list(index.embed["ignore"])
    own = {"license": index.license, "source": index.source, "references": index.digest}
    unsafe = _Side(DEGRADED, [row.conversation for row in index.rows("unsafe")], own | {"side": "unsafe"})
    if benign is None:
        safe = index.rows("safe")
        ordinary = [row for row in safe if row.benign]
        side = "benign" if ordinary else "safe"
        useful = _Side(UTILITY, [row.conversation for row in ordinary or safe], own | {"side": side})
    else:
        useful = _benign(benign, benign_license, benign_source, benign_columns)
    _require_apart(unsafe, useful)
    return _trained(facts | {"training": options.to_json()}, [useful, unsafe], options, load.pick_device(device, None))


@dataclass(frozen=True, slots=True)
class _Side:
    """What an adapter is trained on.

    Attributes:
        adapter: Which one.
        rows: The rows.
        origin: Licence and source.
    """

    adapter: str
    rows: Sequence[Conversation]
    origin: Mapping[str, str]


def _benign(
    rows: Rows | str | Path, license: str | None, source: str | None, columns: Mapping[str, str] | None
) -> _Side:
    from hf_safefilter.data.load_rows import load_rows

    origin, recheck = {}, None
    if isinstance(rows, (str, Path)):
        loaded = load_rows(rows)
        rows, source, origin = loaded.rows, source or loaded.name, {"revision": loaded.revision}
        recheck = loaded.require_unchanged
    for name, value in (("license", license), ("source", source)):
        if not isinstance(value, str) or not value.strip():
            raise OptionError(f"benign rows need a {name}", found=repr(value), fix=f"pass `benign_{name}=...`")
        origin[name] = value.strip()
    read = [row for part in parts_of(rows) for row in as_conversations(part, columns)]
    if recheck is not None:
        recheck()
    return _Side(UTILITY, read, origin)


def _require_apart(unsafe: _Side, useful: _Side) -> None:
    shared = {row_id(row) for row in unsafe.rows} & {row_id(row) for row in useful.rows}
    if shared:
        raise DataError(
            f"{len(shared)} of the benign rows are also among the unsafe references",
            found=f"row_id {min(shared)}",
            fix="remove them from one side",
        )


def _trained(
    facts: dict[str, Any], sides: Sequence[_Side], options: AdapterOptions, device: torch.device
) -> RiskAdapters:
    from safetensors.torch import save

    from hf_safefilter.scores.token_risk.adapter_training import train
    from hf_safefilter.scores.token_risk.two_adapters import TwoAdapters

    read = [_readable(facts, side) for side in sides]
    two = TwoAdapters(key_of(facts), device, options)
    files = {}
    for side, (tokens, counted) in zip(sides, read, strict=True):
        losses = train(two, side.adapter, tokens, options)
        facts[side.adapter] = {**side.origin, **counted, "losses": [round(loss, 4) for loss in losses]}
        files[file_name(side.adapter)] = save(two.tensors(side.adapter))
    return RiskAdapters.make(facts, files)


def _readable(facts: Mapping[str, Any], side: _Side) -> tuple[list[Tokens], dict[str, Any]]:
    """The rows that can be learned, and facts about them.

    Raises:
        DataError: There is none.
    """
    tokens = read_tokens(facts, side.rows, facts["ignore"], cut=True)
    good = [row for row in tokens if not row.reason]
    reasons = sorted(row.reason for row in tokens if row.reason)
    if not good:
        raise DataError(
            f"no row can be learned by the {side.adapter} adapter",
            found=", ".join(sorted(set(reasons))) or "no rows",
            fix="use rows with a prompt and a response",
        )
    ids = [row_id(row) for row, read in zip(side.rows, tokens, strict=True) if not read.reason]
    return good, {"rows": ids, "skipped": reasons, "truncated": sum(row.truncated for row in good)}
