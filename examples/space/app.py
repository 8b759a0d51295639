"""A Space on which several people review scored rows: put a scored folder beside this file, and fill in the names."""

import os
from pathlib import Path

from hf_safefilter.review.review import Review
from hf_safefilter.review.server import serve

SCORED = Path(os.environ.get("SCORED", "scored"))
"""A folder written by `hf-safefilter score` or `select`; use a private Space for rows that are not public."""

COLUMN = os.environ.get("COLUMN", "probe_score") or None
"""The score column; set it to nothing for a folder written by `select`, which has its own."""

DECISIONS = Path(os.environ.get("DECISIONS", "/data/decisions.jsonl"))
"""In a bucket that is attached to the Space, or they are lost when it restarts."""

STORE = Path(__file__).parent / "store"
"""What the scores compare with, from the store of the machine that made them; see the README."""

OUTPUT = Path(os.environ.get("OUTPUT", "/data/labelled"))
"""Where the rows go that the page scores again."""

if __name__ == "__main__":
    os.environ.setdefault("HF_SAFEFILTER_CACHE", str(STORE))
    DECISIONS.parent.mkdir(parents=True, exist_ok=True)
    DECISIONS.open("ab").close()  # without a bucket it fails now, and not at the first decision
    # it was written on your own machine, which is not this one: say that you trust it
    review = Review.of(SCORED, DECISIONS, output=OUTPUT, by=COLUMN, trust_vectors=True)
    serve(review, token=os.environ.get("REVIEW_TOKEN"))  # a secret of the Space; without it see the log for the address
