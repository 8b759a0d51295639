"""The starter sets: small, mild reference rows and over-refusal prompts to begin with; replace them with your own."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path

from hf_safefilter.errors import OptionError

LICENSE = "cc0-1.0"
SOURCE = "starter set of hf_safefilter"
NAMES = ("unsafe", "safe", "benign", "over_refusal", "normal")
TRAITS = ("sycophancy", "made_up_facts", "obedience")
"""Sets of pairs that show a trait of a model other than harm, and its opposite."""


def starter_path() -> Path:
    """The folder with the sets and their card."""
    return Path(__file__).parent


def starter_rows(name: str) -> list[dict[str, str]]:
    """The rows of one set.

    ``unsafe`` and ``safe`` are pairs: row i of both has the same prompt; the unsafe response complies in tone (without
    anything usable), the safe response refuses. ``benign`` holds ordinary requests answered, at every length, some of
    them about subjects near the harmful ones. ``over_refusal`` holds prompts that only sound harmful, and ``normal``
    holds prompts of everyday life; both have no responses. The sets of `TRAITS` hold both sides: the same request
    answered with the trait, labelled "unsafe", and without it.

    Args:
        name: One of `NAMES` or `TRAITS`.

    Returns:
        Rows with ``prompt``, ``label`` and ``category``; in the first three sets also with ``response`` and
        ``language``, an ISO 639-1 code.

    Raises:
        OptionError: There is no such set.
    """
    names = NAMES + TRAITS
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "use one of these names"
        raise OptionError(f"there is no starter set {name!r}", found=", ".join(names), fix=fix)
    lines = (starter_path() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
