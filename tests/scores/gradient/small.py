"""Small models in float64, made-up rows, and the score by its definition: flat vectors, one row at a time."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from small_models import ARCHITECTURES, small_tokenizer

from hf_safefilter.scores.gradient.examples import Example
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.scores.gradient.tuned import Tuned, choose, with_adapters

PAD = 0


def small(name: str = "llama", parts: Parts | None = None, dtype: torch.dtype = torch.float64, **changes) -> Tuned:
    """A random model of architecture `name`, and its parameters that count."""
    prefix, options = ARCHITECTURES[name]
    torch.manual_seed(1)
    model = getattr(transformers, f"{prefix}ForCausalLM")(
        getattr(transformers, f"{prefix}{'Text' * (prefix == 'Gemma3')}Config")(**options | changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    parts = parts or Parts()
    model = model.eval().requires_grad_(False)
    if parts.kind == "lora":
        model = with_adapters(model, parts)
    return choose(model.to(dtype), parts)


def made_up(sizes: Sequence[int] = (9, 4, 14, 9, 2, 30), words: int = 320, seed: int = 3) -> list[Example]:
    """Rows of random tokens, some twice in a row, one of them padding's own; labels from the middle on, with gaps in
    longer rows, as between two answers."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(1, words, size) for size in sizes]
    for ids in rows:
        ids[-1] = ids[0]
    rows[0][1] = rows[0][-2] = PAD
    return [Example(ids.astype(np.int32), _labels(len(ids))) for ids in rows]


def _labels(length: int) -> np.ndarray:
    labels = np.arange(length) >= max(1, length // 2)
    if length >= 14:
        labels[2 * length // 3 : length - 3] = False
    return labels


def random_anchor(tuned: Tuned, seed: int = 5) -> dict[str, torch.Tensor]:
    """Any tensors of the parameters' shapes, and of length one together."""
    draw = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in tuned.parameters.items()}
    length = torch.cat([one.flatten() for one in found.values()]).norm()
    return {name: (one / length).to(next(iter(tuned.parameters.values())).dtype) for name, one in found.items()}


def flat_gradient(tuned: Tuned, example: Example) -> torch.Tensor:
    """The gradient of one row as one vector, by autograd and transformers' own loss."""
    for one in tuned.parameters.values():
        one.requires_grad_(True)
    ids = torch.from_numpy(example.ids[None].astype(np.int64))
    labels = torch.where(torch.from_numpy(example.labels)[None], ids, -100)
    logits = tuned.model(input_ids=ids).logits  # transformers' own loss would compute in float32
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    found = torch.autograd.grad(loss, list(tuned.parameters.values()))
    for one in tuned.parameters.values():
        one.requires_grad_(False)
    return torch.cat([one.flatten() for one in found])


def by_definition(tuned: Tuned, examples: Sequence[Example], anchor: dict[str, torch.Tensor]) -> np.ndarray:
    """<g, G> / |g| of each row."""
    whole = torch.cat([one.flatten().double() for one in anchor.values()])
    flat = (flat_gradient(tuned, example).double() for example in examples)
    return np.array([float(g @ whole / g.norm()) for g in flat])


def save(tuned: Tuned, folder) -> str:
    """The model and a small tokenizer as a folder."""
    tuned.model.float().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return str(folder)
