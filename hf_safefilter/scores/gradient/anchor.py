"""The combined anchor gradient as an artefact: found by its digest, opened once per process, used to score rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.data.conversations import Conversation
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.storage import artifacts
from hf_safefilter.storage.fitted import Fitted
from hf_safefilter.storage.scratch import scratch_folder

if TYPE_CHECKING:
    import torch

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.gradient.examples import Example
    from hf_safefilter.scores.gradient.meters import Meter
    from hf_safefilter.scores.gradient.tuned import Tuned

PROJECTED = "projected"
"""Name of the only tensor of a projected anchor."""

_SHARD = 1 << 30  # bytes per file of tensors


class GradientAnchor(Fitted):
    """One combined anchor gradient, a float32 tensor per parameter (or its random projection); made by `fit_gradient`.

    `facts` has the model, the parameters whose gradient is taken, how rows were read, and the ids of the anchor rows.
    The fact `normalize` is there only if it is False, so that an anchor has the digest that it always had.
    """

    KIND = "gradient_anchor"

    def tensors(self) -> dict[str, torch.Tensor]:
        """G by parameter name, float32 on the CPU; for the projected form one tensor ``projected`` (width,)."""
        from safetensors.torch import load

        tensors: dict[str, torch.Tensor] = {}
        for name in self.files[:-1]:
            tensors |= load(self.bytes_of(name))
        return tensors

    def score(self, conversations: Sequence[Conversation], device: torch.device) -> tuple[np.ndarray, list[str]]:
        """<g, G> / |g| of each row, float64 (n,), and the reason of each row without a score ("" for the others).

        With the fact `normalize` False it is <g, G>.

        Raises:
            ModelError: The model cannot be loaded.
            IntegrityError: The model has changed.
        """
        from hf_safefilter.scores.gradient.row_scores import measure

        tuned, tensors = tuned_of(self.facts, device), _opened(self, device)
        examples = examples_of(self.facts, conversations, None)
        return measure(tuned, examples, lambda count: self._meter(tuned, tensors, count))

    def _meter(self, tuned: Tuned, tensors: Mapping[str, torch.Tensor], count: int) -> Meter:
        from hf_safefilter.scores.gradient.meters import Exact, Projected

        projection, normalize = self.facts["projection"], self.facts.get("normalize", True)
        if projection is None:
            return Exact(tensors, count, normalize)
        return Projected(projection["seed"], projection["width"], count, tensors[PROJECTED], tuned.device, normalize)


def examples_of(facts: Mapping[str, Any], conversations: Sequence[Conversation], most: int | None) -> list[Example]:
    """The rows as the anchor's model reads them, with at most `most` labels each (None: no limit)."""
    from hf_safefilter.model import load
    from hf_safefilter.scores.gradient.examples import read_examples

    key = _key(facts)
    return read_examples(
        load.tokenizer(key),
        conversations,
        max_length=facts["max_length"] or load.max_tokens(key),
        chat_template=facts["chat_template"],
        most=most,
    )


def _key(facts: Mapping[str, Any]) -> ModelKey:
    from hf_safefilter.model.source import ModelKey

    return ModelKey(facts["model"], facts["revision"], facts["dtype"])


def tuned_of(facts: Mapping[str, Any], device: torch.device) -> Tuned:
    """The anchor's model on `device`, from this process's table or from disk."""
    from hf_safefilter.model import load
    from hf_safefilter.scores.gradient.tuned import tuned

    load.single_thread_after_fork()
    return tuned(_key(facts), device, Parts(**facts["parts"]))


@lru_cache(maxsize=2)
def _opened(anchor: GradientAnchor, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in anchor.tensors().items()}


def stored(facts: Mapping[str, Any], total: Mapping[str, torch.Tensor]) -> GradientAnchor:
    """Write the anchor in shards, because it may be as large as the model, and open it."""
    from safetensors.torch import save_file

    def fill(folder: Path) -> None:
        shards: list[dict[str, torch.Tensor]] = [{}]
        for name, tensor in total.items():
            if shards[-1] and sum(other.nbytes for other in shards[-1].values()) + tensor.nbytes > _SHARD:
                shards.append({})
            shards[-1][name] = tensor.contiguous()
        for number, shard in enumerate(shards):
            save_file(shard, folder / f"anchor-{number:05d}.safetensors")

    with scratch_folder() as scratch:
        folder = scratch / "artefact"
        artifacts.write(folder, GradientAnchor.KIND, GradientAnchor.VERSION, facts, fill)
        return GradientAnchor.load(folder)
