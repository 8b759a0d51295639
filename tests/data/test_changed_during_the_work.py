"""Every place that reads rows of a folder holds them to the digest once it has read them."""

import os

import pytest
from datasets import Dataset

from hf_safefilter.cli.effect import _questions
from hf_safefilter.data import load_rows as loading
from hf_safefilter.data.prompts import prompts_at
from hf_safefilter.errors import IntegrityError
from hf_safefilter.pipeline import decision_rule
from hf_safefilter.recipe import SelectionRule
from hf_safefilter.references import open as opening
from hf_safefilter.scores.controls import LengthScore
from hf_safefilter.scores.token_risk.fit import _benign
from hf_safefilter.storage import artifacts

ROWS = Dataset.from_list([{"prompt": f"{number}?", "response": "sheep " * (number + 1)} for number in range(40)])


def threshold(at):
    scored = ROWS.map(LengthScore(), batched=True)
    rule = SelectionRule.checked(known_good=at, max_loss=0.5, confidence=0.5)
    return decision_rule.decide_threshold(scored, "length_score", rule, [LengthScore()])


PLACES = {
    "references": (opening, lambda at: opening.rows_at(at)),
    "known good rows": (decision_rule, threshold),
    "ordinary rows of token_risk": (loading, lambda at: _benign(at, "mit", "a barn", None)),
    "prompts": (loading, lambda at: prompts_at(at)),
    "questions": (loading, lambda at: _questions("toy", at, None, None)),
}


@pytest.mark.parametrize("place", PLACES)
def test_rows_that_change_once_they_are_opened_are_refused(tmp_path, monkeypatch, place):
    folder = tmp_path / "rows"
    ROWS.save_to_disk(folder)
    file = next(folder.glob("*.arrow"))
    module, read = PLACES[place]
    read(str(folder))
    real = module.load_rows

    def changed_at_once(*args, **options):
        loaded = real(*args, **options)
        times = file.stat()
        content = file.read_bytes()
        with file.open("r+b") as stream:  # the rows are mapped from it
            stream.write(content.replace(b"sheep", b"goats"))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return loaded

    monkeypatch.setattr(module, "load_rows", changed_at_once)
    with pytest.raises(IntegrityError, match="rows was changed while it was read"):
        read(str(folder))


def test_an_artefact_that_changes_while_it_is_kept_does_not_reach_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    artifacts.write(tmp_path / "cheese", "cheese", 1, {}, lambda at: (at / "gouda.txt").write_text("yellow"))
    real = artifacts.shutil.copyfile

    def slowly(source, target):
        if source.name == "gouda.txt":
            source.write_text("purple")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.shutil, "copyfile", slowly)
        with pytest.raises(IntegrityError):
            artifacts.keep(tmp_path / "cheese", "cheese", 1)
    (tmp_path / "cheese" / "gouda.txt").write_text("yellow")
    digest = artifacts.keep(tmp_path / "cheese", "cheese", 1)
    assert (artifacts.find("cheese", digest) / "gouda.txt").read_text() == "yellow"
