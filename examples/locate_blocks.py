"""Find the blocks that carry the toy model's safety, in two ways, each from two draws of prompts.

    python examples/locate_blocks.py

The angular gap needs one pass over everyday prompts and harmful requests. The scaling search makes one block at a time
louder and quieter and counts refusals of prompts that only sound harmful. For your own model: its name instead of
"toy", and your prompts (or none: a small set ships with the package).
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_safefilter import SafetyLayers, ScalingOptions, locate_safety_layers
from hf_safefilter.toy.corpus import heldout_prompts


def by_gap(seed: int, prompts: int = 100) -> SafetyLayers:
    """Where harmful requests begin to look different from everyday ones."""
    asked = {"normal": heldout_prompts("benign", prompts, seed), "malicious": heldout_prompts("harmful", prompts, seed)}
    return locate_safety_layers("toy", asked, "gap")


def by_scaling(seed: int, prompts: int = 200) -> SafetyLayers:
    """The block whose loudness refusals follow; few of these prompts are refused, so it takes many."""
    options = ScalingOptions(refusals="broad", max_new_tokens=12)
    return locate_safety_layers("toy", heldout_prompts("borderline", prompts, seed), "scaling", options=options)


def main(seeds: Sequence[int] = (0, 1), prompts: int = 200) -> None:
    """Search twice each, and say what was found."""
    for seed in seeds:
        gap, scaling = by_gap(seed), by_scaling(seed, prompts)
        degrees = ", ".join(f"{row['gap']:.1f}" for row in gap.table)
        scores = ", ".join(f"{row['score']:+.2f}" for row in scaling.table)
        print(f"prompts {seed}: gap: blocks {list(gap.blocks)}, read layer {gap.layer} (degrees by block: {degrees})")
        print(f"prompts {seed}: scaling: block {list(scaling.blocks)}, p = {scaling.facts['chance']:.3f} ({scores})")


if __name__ == "__main__":
    main()
