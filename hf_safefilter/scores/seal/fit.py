"""fit_seal: check the rows, load the model, continue an earlier run if there is one, and store the result."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_safefilter.errors import IntegrityError, MissingError
from hf_safefilter.scores.seal.job import Job
from hf_safefilter.scores.seal.options import Lora, SealOptions
from hf_safefilter.scores.seal.selector import NAN_LOSS, SealSelector

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_safefilter.scores.seal.checkpoint import Checkpoints
    from hf_safefilter.scores.seal.loop import Learned
    from hf_safefilter.scores.seal.training_processes import Processes

    RowSource: TypeAlias = Dataset | DatasetDict | IterableDataset | Iterable[Mapping[str, Any]]

logger = logging.getLogger(__name__)

EXTRA = "pip install 'hf_safefilter[train]'"


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

    With `checkpoints` a run that was killed continues where it was and learns the same logits as an uninterrupted run
    (to the bit on a CPU with as many threads and processes). Several processes (``accelerate launch`` or ``torchrun``)
    share each batch and all learn the same logits.

    Args:
        model: Hub id, local folder or "toy": the model that is to be tuned. A copy of it in memory is trained.
        rows: The fine-tuning set, all splits together.
        trusted_safe_rows: Rows known to be good, with responses as the tuned model should give them.
        options: The numbers of the fit; the published ones by default.
        lora: Train adapters instead of all weights.
        revision: Branch, tag or commit of the model.
        columns: Which columns hold prompt and response, for rows of no known shape.
        safe_columns: The same for the trusted rows.
        chat_template: For a model without a template: a Jinja template, or "plain".
        device: "cpu", "cuda", "cuda:1" or "mps"; None: the fastest that is available.
        checkpoints: Folder for checkpoints. When the run has finished, only a note of its result stays there, which the
            same call then returns. None: nothing is saved.
        checkpoint_seconds: Least number of seconds between two checkpoints; 0 saves after every step.

    Raises:
        DataError: There are no rows or no safe rows that can be used, or some rows are on both sides.
        OptionError: An option, LoRA target or checkpoint folder cannot be used.
        ModelError: The model cannot be read, does not fit into memory, or diverged.
        MissingError: The training extra is not installed.

    Source: SEAL, arXiv 2410.07471.
    """
    _require_extra("accelerate", *(["peft"] if lora is not None else []))
    from hf_safefilter.model import load
    from hf_safefilter.model.chat_template import template_digest
    from hf_safefilter.scores.seal.checkpoint import Checkpoints
    from hf_safefilter.scores.seal.loop import learn
    from hf_safefilter.scores.seal.models import pick_compute, stored_in
    from hf_safefilter.scores.seal.training_processes import Processes
    from hf_safefilter.scores.seal.training_rows import read_rows, require_usable

    options = options or SealOptions()
    processes = Processes(cpu=load.pick_device(device, None).type == "cpu")
    target = load.pick_device(device, processes.local_index)
    compute = pick_compute(options.dtype, target)
    key = load.ModelKey(str(model), load.resolve_revision(str(model), revision), stored_in(compute, lora))
    tokenizer, max_length = load.tokenizer(key), options.max_length or load.max_tokens(key)
    read = partial(read_rows, tokenizer=tokenizer, max_length=max_length, chat_template=chat_template)
    weighed, safe = read(rows, columns=columns), read(trusted_safe_rows, columns=safe_columns)
    require_usable(weighed, safe)
    job = Job(key, target, compute, template_digest(tokenizer, chat_template), options, lora, weighed, safe)
    store = Checkpoints(Path(checkpoints) if checkpoints is not None else None, job.run(), checkpoint_seconds)
    earlier = _earlier_result(store, processes)
    if earlier is not None:
        logger.info("this run was finished before: %s", earlier.digest)
        if processes.is_first:
            store.finish(earlier.digest)  # a kill may have left checkpoints
        return earlier
    learned = learn(job, store, processes)
    for index in range(processes.count):  # one after the other, as they may share a store
        if index == processes.index:
            selector = SealSelector.of_logits(
                learned.logits, unfit=dict(job.rows.unfit) | learned.excluded, facts=_facts(job, learned)
            )
        processes.wait()
    if processes.is_first:
        store.finish(selector.digest)
    return selector


def _earlier_result(store: Checkpoints, processes: Processes) -> SealSelector | None:
    """The result of the same run, if every process has it in its store."""
    digest = store.finished()
    try:
        selector = SealSelector.of(digest) if digest is not None else None
    except (MissingError, IntegrityError):
        selector = None
    return selector if processes.agree(selector is not None) else None


def _facts(job: Job, learned: Learned) -> dict[str, Any]:
    """The job's facts with the results of the run: its curves, and the number of rows without a finite loss."""
    facts = job.facts()
    if learned.excluded:
        facts["rows"] |= {f"unscorable: {NAN_LOSS}": len(learned.excluded)}
    if learned.safe_without_loss:
        facts["safe_rows"] |= {f"unscorable: {NAN_LOSS}": learned.safe_without_loss}
    return facts | {"run": job.run(), "epochs": learned.epochs}


def _require_extra(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingError(f"fitting SEAL needs {package}, which is not installed", fix=EXTRA)
