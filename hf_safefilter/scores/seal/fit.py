"""fit_seal: check, load, go on where an earlier run stood, and keep what was learned."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.scores.seal.options import Lora, SealOptions
from hf_safefilter.scores.seal.selector import SealSelector

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.seal.checkpoint import Checkpoints
    from hf_safefilter.scores.seal.data import Rows
    from hf_safefilter.scores.seal.processes import Processes

    RowSource = Dataset | DatasetDict | IterableDataset | Iterable[Mapping[str, Any]]

logger = logging.getLogger(__name__)

ALGORITHM = 1
"""Raised whenever the same run would learn other logits: checkpoints of another algorithm are refused."""

EXTRA = "pip install 'hf_safefilter[train]'"


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that decides what is learned."""

    key: ModelKey
    device: torch.device
    compute: str
    options: SealOptions
    lora: Lora | None
    rows: Rows
    safe: Rows
    facts: Mapping[str, Any]

    @property
    def run(self) -> str:
        """Digest of it all; the device and the number of processes, which only round differently, are left out."""
        body = [ALGORITHM, dict(self.facts), self.rows.ids, self.safe.ids]
        return "sha256:" + hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def fit_seal(
    model: str,
    rows: RowSource,
    trusted_safe_rows: RowSource,
    *,
    options: SealOptions | None = None,
    lora: Lora | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    safe_columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    device: str | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_seconds: float = 300.0,
) -> SealSelector:
    """Learn a weight for each row such that a model tuned with these weights has a low loss on trusted rows.

    Rows are rendered by the model's own template; the loss is the mean over the tokens of the response and the token
    that ends it. Rows that cannot be read, have no label or give no finite loss are left out and counted, duplicates
    share one weight, and the order of the rows does not matter.

    With `checkpoints` a run that was killed goes on where it was and learns the same logits as one that was not (to
    the bit on a CPU with as many threads and processes). Several processes (``accelerate launch`` or ``torchrun``)
    share each batch and all learn the same logits.

    Args:
        model: Hub id, local folder or "toy": the model that is to be tuned. It is trained on a copy in memory.
        rows: the fine-tuning set; all splits together.
        trusted_safe_rows: rows known to be good, with responses as the tuned model should give them.
        options: how to fit; the published numbers by default.
        lora: train adapters instead of all weights.
        revision: branch, tag or commit of the model.
        columns: where prompt and response are, for rows of no known shape.
        safe_columns: the same for the trusted rows.
        chat_template: for a model that has none: a Jinja template, or "plain".
        device: "cpu", "cuda", "cuda:1" or "mps"; the best there is if None.
        checkpoints: folder for them, emptied when the run is done but for a note of its result, which the same call
            then returns. None: nothing is saved.
        checkpoint_seconds: least time between two; 0 saves after every step.

    Raises:
        DataError: no rows or no safe rows that can be used, or rows on both sides.
        OptionError: an option, LoRA target or checkpoint folder that does not fit.
        ModelError: the model cannot be read, does not fit into memory, or diverged.
        MissingError: the training extra is not installed.

    Source: SEAL, arXiv 2410.07471.
    """
    _require_extra("accelerate", *(["peft"] if lora is not None else []))
    from hf_safefilter.model.load import pick_device
    from hf_safefilter.scores.seal.checkpoint import Checkpoints
    from hf_safefilter.scores.seal.loop import learn
    from hf_safefilter.scores.seal.processes import Processes

    processes = Processes(cpu=pick_device(device, None).type == "cpu")
    job = _job(
        model, rows, trusted_safe_rows, options or SealOptions(), lora, revision, columns, safe_columns, chat_template,
        pick_device(device, processes.local_index),
    )  # fmt: skip
    folder = Path(checkpoints) if checkpoints is not None else None
    kept = Checkpoints(folder, job.run, checkpoint_seconds)
    done = _done(kept, processes)
    if done is not None:
        logger.info("this run was done before: %s", done.digest)
        return done
    learned = learn(job, kept, processes)
    for turn in range(processes.count):  # one after the other: they may share a store
        if turn == processes.index:
            selector = SealSelector.of_logits(
                learned.logits, unfit=dict(job.rows.unfit) | learned.excluded, facts=_facts(job, learned)
            )
        processes.wait()
    if processes.is_first:
        kept.finish(selector.digest)
    return selector


def _done(kept: Checkpoints, processes: Processes) -> SealSelector | None:
    """The result of the same run, if every process has it in its store."""
    digest = kept.finished()
    try:
        found = SealSelector.of(digest) if digest is not None else None
    except (MissingError, IntegrityError):
        found = None
    return found if processes.agree(found is not None) else None


def _job(
    model: str,
    rows: RowSource,
    safe_rows: RowSource,
    options: SealOptions,
    lora: Lora | None,
    revision: str | None,
    columns: Mapping[str, str] | None,
    safe_columns: Mapping[str, str] | None,
    chat_template: str | None,
    device: torch.device,
) -> Job:
    from hf_safefilter.model import load
    from hf_safefilter.model.tokens import template_digest
    from hf_safefilter.scores.seal.data import read_rows, require_usable
    from hf_safefilter.scores.seal.models import pick_compute, stored_in

    compute = pick_compute(options.dtype, device)
    key = load.ModelKey(str(model), load.resolve_revision(str(model), revision), stored_in(compute, lora))
    tokenizer = load.tokenizer(key)
    longest = options.max_length or load.max_tokens(key)
    met = read_rows(rows, tokenizer, columns=columns, max_length=longest, chat_template=chat_template)
    trusted = read_rows(safe_rows, tokenizer, columns=safe_columns, max_length=longest, chat_template=chat_template)
    require_usable(met, trusted)
    facts = {
        "model": key.model,
        "revision": key.revision,
        "compute": compute,
        "chat_template_digest": template_digest(tokenizer, chat_template),
        "activation": options.activation,
        "options": asdict(options),
        "lora": asdict(lora) | {"targets": list(lora.targets)} if lora is not None else None,
        "rows": met.counts,
        "safe_rows": trusted.counts,
    }
    return Job(key, device, compute, options, lora, met, trusted, facts)


def _facts(job: Job, learned: Any) -> dict[str, Any]:
    counts = dict(job.facts["rows"])
    for reason in learned.excluded.values():
        counts[f"unscorable: {reason}"] = counts.get(f"unscorable: {reason}", 0) + 1
    safe = dict(job.facts["safe_rows"]) | ({"nan_loss": learned.safe_without_loss} if learned.safe_without_loss else {})
    return dict(job.facts) | {"run": job.run, "rows": counts, "safe_rows": safe, "epochs": learned.epochs}


def _require_extra(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingError(f"fitting SEAL needs {package}, which is not installed", fix=EXTRA)
