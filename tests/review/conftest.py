"""Scored rows for all tests of the review page, made once."""

import pytest

from hf_safefilter.review.review import Review
from review.scored_folder import scored_folder


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """The folder, its rows and its steps."""
    folder = tmp_path_factory.mktemp("review") / "scored"
    return folder, *scored_folder(folder)


@pytest.fixture
def review(scored, tmp_path):
    """A review that has just begun."""
    log, output = tmp_path / "decisions.jsonl", tmp_path / "labelled"
    return Review.of(scored[0], log, by="largest_rank_score", drop_count=10, output=output)
