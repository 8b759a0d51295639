"""Filter a set too large for one machine on a Ray cluster.

    python examples/ray_cluster.py rows.jsonl out                              # on this machine, to try it
    RAY_ADDRESS=auto python examples/ray_cluster.py rows.jsonl out 16 1        # on a node of a cluster: 16 GPUs

The rows are streamed: of each row only its id, its scores and why it could not be read are kept until the decision is
made; then they are read a second time, and the kept ones are written. On a cluster, every machine needs this package,
and HF_HOME should name a folder that all of them see: models, references and finished vectors are shared by it. Where
the machine that runs this has no GPU, name the number format too (model: {..., dtype: bfloat16}): it is settled here.
"""

from __future__ import annotations

import sys

from hf_safefilter import RayEngine, purify
from hf_safefilter.publish.folder import write_folder


def main(rows: str, out: str, actors: str = "1", gpus_per_actor: str = "0") -> None:
    """Drop the most dangerous 5 % of `rows` and write the rest, with a card, to `out`."""
    recipe = {
        "data": {"path": rows, "streaming": True, "license": "cc-by-4.0", "source": "where the rows come from"},
        "model": {"name": "toy"},  # a Hub id or a folder that all machines see
        "references": {"path": "starter"},  # better: rows of your own domain
        "layer": 6,
        "methods": ["larf"],
        "select": {"drop_fraction": 0.05},
    }
    engine = RayEngine(actors=int(actors), gpus_per_actor=float(gpus_per_actor))
    done = purify(None, recipe, engine=engine)
    write_folder(out, done.scored, done.is_safe, done.provenance, kept=done.kept)
    print(f"{done.counts.kept} of {done.counts.rows} rows kept: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
