"""The two adapters as an artefact: found by its digest, opened once a process, used to give each token its risk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.cache import SCORE, RowVectors
from hf_safefilter.data.conversations import Conversation
from hf_safefilter.data.ragged import offsets_of
from hf_safefilter.data.spans import SPAN
from hf_safefilter.model.tokens import Tokens, tokenise
from hf_safefilter.scores.token_risk.adapter_options import DEGRADED, UTILITY, AdapterOptions
from hf_safefilter.storage.fitted import Fitted

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.token_risk.two_adapters import TwoAdapters

NO_LABELS = "no_label_tokens"
"""Reason of a row without a token to predict."""


class RiskAdapters(Fitted):
    """Two LoRA adapters of one base model, as PEFT names their weights, in safetensors; made by `fit_token_risk`.

    `facts` has the base model, how rows are read, the options of the training, its losses, which rows each adapter was
    trained on, and their licences.
    """

    KIND = "token_risk_adapters"

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The weights of the adapter "utility" or "degraded", float32 on the CPU."""
        from safetensors.torch import load

        return load(self.bytes_of(file_name(name)))

    def risks(self, rows: Sequence[Conversation], device: torch.device, ignore: Collection[str] = ()) -> RowVectors:
        """The risk of every token of the answers: loss under the utility adapter minus loss under the degraded one.

        Args:
            rows: The rows; of a preference pair, the chosen side is read.
            device: Where to compute.
            ignore: What of a row need not stand in its rendering.

        Returns:
            A span of one token for each token of an answer, and under `SCORE` its risk, float32 `(tokens, 1)`. The
            first token of a row has none, as nothing precedes it: its value is 0.

        Raises:
            ModelError: The model cannot be loaded.
            IntegrityError: The model or the adapters have changed.
        """
        read = read_tokens(self.facts, rows, ignore)
        differences = iter(_differences(self, [row for row in read if not row.reason], device))
        spans, values = [np.empty(0, SPAN)], [np.empty(0, np.float32)]
        counts = np.zeros(len(read), np.int64)
        for index, row in enumerate(read):
            if row.reason:
                continue
            stretches = _single_tokens(row)
            counts[index] = len(stretches)
            risks = np.zeros(len(row.ids), np.float32)
            risks[row.labelled()] = next(differences)
            spans.append(stretches)
            values.append(risks[stretches["start"]])
        return RowVectors(
            offsets_of(counts),
            np.concatenate(spans),
            {SCORE: np.concatenate(values)[:, None]},
            np.zeros(len(read), bool),
            np.array([row.reason for row in read], dtype=object),
        ).finite()


def file_name(adapter: str) -> str:
    """Name of the file with the weights of an adapter."""
    return f"{adapter}.safetensors"


def key_of(facts: Mapping[str, Any]) -> ModelKey:
    """The base model."""
    from hf_safefilter.model.source import ModelKey

    return ModelKey(facts["model"], facts["revision"], facts["dtype"])


def limit_of(facts: Mapping[str, Any]) -> int | None:
    """Largest number of tokens that a row may have; None: no limit."""
    from hf_safefilter.model import load

    return facts["max_length"] or load.max_tokens(key_of(facts))


def read_tokens(
    facts: Mapping[str, Any], rows: Sequence[Conversation], ignore: Collection[str] = (), *, cut: bool = False
) -> list[Tokens]:
    """The rows as the base model reads them; one that is too long, or that has no label, is not read.

    With `cut` the end of a row that is too long is left away, as trainers do.
    """
    from hf_safefilter.model import load

    limit, read = limit_of(facts), []
    tokenizer = load.tokenizer(key_of(facts))
    for row in tokenise(tokenizer, rows, chat_template=facts["chat_template"], ignore=ignore):
        if limit is not None and len(row.ids) > limit:
            row = row.cut(limit) if cut else Tokens.unread("too_long")
        read.append(row if row.reason or row.labelled().any() else Tokens.unread(NO_LABELS))
    return read


def _single_tokens(row: Tokens) -> np.ndarray:
    """A span for each token of the row's spans."""
    places = [(turn, False, place, place + 1) for turn, start, _, stop in row.spans for place in range(start, stop)]
    return np.array(places, SPAN)


def _differences(adapters: RiskAdapters, rows: Sequence[Tokens], device: torch.device) -> list[np.ndarray]:
    """Loss under the utility adapter minus loss under the degraded one, for the labels of each row, float32."""
    import torch

    from hf_safefilter.model.threads import pick_threads, threads
    from hf_safefilter.scores.token_risk.label_losses import in_batches, label_losses

    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    if not rows:
        return found
    two = opened(adapters, device)

    def run(part: list[Tokens]) -> np.ndarray:
        losses = {}
        for name in (UTILITY, DEGRADED):
            two.use(name)
            losses[name] = label_losses(two.model, part, two.mask)
        return (losses[UTILITY] - losses[DEGRADED]).cpu().numpy()

    width, most = two.model.config.get_text_config().hidden_size, torch.get_num_threads()
    with torch.inference_mode(), threads(pick_threads(width, most) if device.type == "cpu" else most):
        for batch, risks in in_batches(two.model, rows, run):
            stops = np.cumsum([int(rows[row].labelled().sum()) for row in batch])
            for row, risk in zip(batch, np.split(risks, stops[:-1]), strict=True):
                found[row] = risk
    return found


@lru_cache(maxsize=1)
def opened(adapters: RiskAdapters, device: torch.device) -> TwoAdapters:
    """The base model on `device` with both adapters.

    Raises:
        MissingError: The training extra is not installed.
    """
    from hf_safefilter.model import load
    from hf_safefilter.scores.token_risk.two_adapters import TwoAdapters

    require_peft()
    load.single_thread_after_fork()
    two = TwoAdapters(key_of(adapters.facts), device, AdapterOptions(**adapters.facts["training"]))
    for name in (UTILITY, DEGRADED):
        two.put(name, adapters.tensors(name))
    return two


def require_peft() -> None:
    """Raise unless PEFT is installed.

    Raises:
        MissingError: It is not.
    """
    from importlib.util import find_spec

    from hf_safefilter.errors import MissingError

    if find_spec("peft") is None:
        raise MissingError("token risk needs peft: not installed", fix="pip install 'hf_safefilter[train]'")
