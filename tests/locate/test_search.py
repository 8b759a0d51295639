import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from processes import HANG, wait_until
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_safefilter import BoundsOptions, GapOptions, SafetyLayers, ScalingOptions, locate_safety_layers
from hf_safefilter.errors import DataError, IntegrityError, MissingError, ModelError, OptionError
from hf_safefilter.locate.journal import Journal
from hf_safefilter.model.source import local_folder
from hf_safefilter.toy.corpus import heldout_prompts
from tests.small_models import save_small_model

HARMFUL, BENIGN = heldout_prompts("harmful", 40, 0), heldout_prompts("benign", 40, 0)
BORDERLINE = heldout_prompts("borderline", 40, 0)
FEW = ScalingOptions(scales=(0.8, 1.2), max_new_tokens=6, refusals="broad")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("base"))


def test_the_gap_of_the_toy(tmp_path):
    found = locate_safety_layers("toy", {"normal": BENIGN, "malicious": HARMFUL}, "gap", folder=tmp_path)
    assert found.signal and found.first == 0 and found.facts["chance"] < 0.01
    assert found.layers == tuple(block + 1 for block in found.blocks) and found.layer == found.last + 1
    assert len(found.table) == 6 and found.facts["prompts"]["normal"]["count"] == 40
    # a second route: transformers' own hidden states, one prompt at a time
    folder = str(local_folder("toy"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def states(prompt):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            return torch.stack(model(**inputs, output_hidden_states=True).hidden_states[1:])[:-1, 0, -1].double()

    import random

    cosines = []
    for number in range(30):
        random.seed(1000 + number)
        one = states(random.sample(BENIGN, 1)[0])
        cosines.append(torch.cosine_similarity(one, states(random.sample(HARMFUL, 1)[0]), dim=-1))
    short = locate_safety_layers("toy", {"normal": BENIGN, "malicious": HARMFUL}, options=GapOptions(pairs=30))
    ours = [row["cos_nm"] for row in short.table[:-1]]
    np.testing.assert_allclose(ours, torch.stack(cosines).mean(0).numpy(), atol=1e-5)
    assert SafetyLayers.load(tmp_path) == SafetyLayers.from_json(json.loads(json.dumps(found.to_json())))
    assert {path.name for path in tmp_path.iterdir()} == {"locate.json", "locate.png", "locate.svg"}
    assert not any(prompt in (tmp_path / "locate.json").read_text() for prompt in HARMFUL)


def test_a_loaded_model_gives_what_its_name_gives():
    folder = str(local_folder("toy"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = {"normal": BENIGN, "malicious": HARMFUL}
    ours, named = locate_safety_layers(model, prompts, tokenizer=tokenizer), locate_safety_layers("toy", prompts)
    assert ours.table == named.table
    with pytest.raises(OptionError, match="`tokenizer="):
        locate_safety_layers(model, prompts)
    with pytest.raises(OptionError, match="no `revision="):
        locate_safety_layers(model, prompts, tokenizer=tokenizer, dtype="bfloat16")


def test_bounds_start_from_the_gap_or_from_a_range_given(tmp_path):
    prompts = {"normal": BENIGN, "malicious": HARMFUL, "over_refusal": BORDERLINE}
    options = BoundsOptions(alpha=1.3, window=3, max_new_tokens=6, refusals="broad")
    found = locate_safety_layers("toy", prompts, "bounds", options=options, folder=tmp_path)
    assert found.facts["gap"]["signal"] and found.facts["initial"] == [0, found.facts["gap"]["last_block"]]
    tried = {(row["first"], row["last"]) for row in found.table}
    assert len(tried) >= 3 and found.facts["alpha"] == 1.3
    assert found.signal or "chance" in found.why
    options = BoundsOptions(initial=(1, 2), alpha=0.7, window=3, max_new_tokens=6)
    found = locate_safety_layers("toy", BORDERLINE, "bounds", options=options)
    assert "gap" not in found.facts and {(1, 1), (1, 2), (1, 3)} <= {(r["first"], r["last"]) for r in found.table}
    with pytest.raises(OptionError, match="6 blocks"):
        locate_safety_layers("toy", BORDERLINE, "bounds", options=BoundsOptions(initial=(2, 6), alpha=1.2))


def test_a_model_that_never_refuses_gives_no_layer(small):
    found = locate_safety_layers(str(small), BENIGN, "scaling", options=FEW)
    assert not found.signal and "refuses none" in found.why and found.blocks == ()
    for name in ("layer", "block_range"):
        with pytest.raises(DataError, match="no safety layers were found"):
            getattr(found, name)
    bounds = BoundsOptions(initial=(1, 2), max_new_tokens=4, most_steps=2)
    found = locate_safety_layers(str(small), BENIGN, "bounds", options=bounds)
    assert not found.signal and "hardly change" in found.why


def test_a_model_that_always_refuses_gives_no_layer():
    options = ScalingOptions(scales=(0.9, 1.1), max_new_tokens=4, refusals="broad")
    found = locate_safety_layers("toy", BENIGN, "scaling", options=options, refusals=lambda reply: True)
    assert not found.signal and "refuses every" in found.why
    assert found.facts["refusals"]["name"].endswith("<lambda>")


def test_where_norms_cancel_the_scale_the_user_is_told(tmp_path, caplog):
    folder = save_small_model(tmp_path, "gemma2")
    found = locate_safety_layers(str(folder), BENIGN[:10], "scaling", options=FEW)
    assert found.facts["form"] == "branches" and "the outputs of its branches are scaled instead" in caplog.text


def test_degenerate_replies_are_counted_apart(small):
    found = locate_safety_layers(str(small), BENIGN, "scaling", options=FEW)
    assert sum(row["degenerate"] for row in found.table) + found.facts["unscaled"].get("degenerate", 0) > 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"method": "guess"}, OptionError),
        ({"method": "gap", "options": ScalingOptions()}, OptionError),
        ({"method": "gap", "prompts": BENIGN}, OptionError),
        ({"method": "gap", "prompts": {"normal": BENIGN[:5]}}, DataError),
        ({"method": "gap", "prompts": {"harmless": BENIGN}}, OptionError),
        ({"method": "scaling", "prompts": BENIGN[:5]}, DataError),
        ({"method": "scaling", "prompts": []}, DataError),
        ({"method": "scaling", "prompts": [*BENIGN, " "]}, DataError),
        ({"method": "scaling", "prompts": "one text"}, OptionError),
        ({"method": "scaling", "refusals": "larff"}, OptionError),
        ({"method": "gap", "model": "/no/such/folder"}, ModelError),
        ({"method": "gap", "folder": __file__}, OptionError),
    ],
)
def test_what_makes_no_sense_is_refused(call, error):
    with pytest.raises(error):
        locate_safety_layers(**{"model": "toy"} | call)


def test_a_folder_without_a_result_is_said_to_be(tmp_path):
    with pytest.raises(MissingError):
        SafetyLayers.load(tmp_path)
    (tmp_path / "locate.json").write_text("{")
    with pytest.raises(IntegrityError):
        SafetyLayers.load(tmp_path)
    (tmp_path / "locate.json").write_text("{}")
    with pytest.raises(IntegrityError):
        SafetyLayers.load(tmp_path)


_CODE = """
import json, sys, time
from hf_safefilter import ScalingOptions, locate_safety_layers
from hf_safefilter.locate.journal import Journal
add, most = Journal.add, int(sys.argv[3])
def add_and_wait(journal, *line):
    add(journal, *line)
    while len(open(sys.argv[2] + "/scaling.progress.jsonl").readlines()) >= most:
        time.sleep(60)
Journal.add = add_and_wait
locate_safety_layers("toy", json.loads(sys.argv[1]), "scaling", folder=sys.argv[2],
    options=ScalingOptions(scales=(0.8, 0.9, 1.1, 1.2), max_new_tokens=6, refusals="broad"))
"""


def test_a_killed_search_goes_on_where_it_was_and_finds_the_same(tmp_path):
    prompts = json.dumps(BORDERLINE)
    journal = tmp_path / "killed" / "scaling.progress.jsonl"

    def start(folder, most=10_000):
        """A search that stops, alive, once its journal holds `most` lines."""
        return subprocess.Popen(
            [sys.executable, "-c", _CODE, prompts, str(folder), str(most)], stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def finished(process):
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, err

    finished(start(tmp_path / "whole"))
    for lines in (4, 12):
        process = start(tmp_path / "killed", lines)
        wait_until(lambda most=lines: journal.exists() and len(journal.read_bytes().splitlines()) >= most, process)
        process.kill()
        process.communicate()
    before = journal.read_bytes()
    with journal.open("ab") as file:  # a kill in the middle of a line
        file.write(b'{"blocks": [5], "by": 1.')
    assert len(before.splitlines()) < 26 and not (tmp_path / "killed" / "locate.json").exists()
    finished(start(tmp_path / "killed"))
    assert journal.read_bytes().startswith(before)
    results = [json.loads((tmp_path / name / "locate.json").read_text()) for name in ("whole", "killed")]
    for result in results:
        result["facts"].pop("seconds")
        result.pop("how")  # says the seconds too
    assert results[0] == results[1]
    cells = Counter(tuple(json.loads(line)["blocks"]) for line in journal.read_text().splitlines()[1:])
    assert cells == {(): 1} | {(block,): 4 for block in range(6)}  # nothing was done twice


def test_a_journal_of_another_search_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, {"model": "a"}).add((1,), 1.2, [0, 1], ["refusal", "degenerate"])
    again = Journal(path, {"model": "a"})
    assert again.holds((1,), 1.2, [0, 1]) and not again.holds((1,), 1.2, [2]) and not again.holds((1,), 1.3, [0])
    assert again.read((1,), 1.2, [1, 0]) == ["degenerate", "refusal"]
    with pytest.raises(DataError, match="another search"):
        Journal(path, {"model": "b"})


@pytest.mark.parametrize("line", ["xx", "{}", '{"blocks": [1], "by": 1.2, "rows": [0], "verdicts": "?"}', "[]"])
def test_a_damaged_journal_is_said_to_be(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    Journal(path, {"model": "a"})
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(IntegrityError, match="to start anew"):
        Journal(path, {"model": "a"})


def test_a_model_trained_since_does_not_go_on_from_what_was_found_before(tmp_path):
    folder = str(local_folder("toy"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def search():
        return locate_safety_layers(
            model, BORDERLINE[:10], "scaling", tokenizer=tokenizer, options=FEW, folder=tmp_path
        )

    assert search().table == search().table
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    with pytest.raises(DataError, match="another search"):
        search()


def test_another_function_does_not_go_on_from_what_was_found_before(tmp_path):
    judges = [
        lambda reply: "sorry" in reply,
        lambda reply: "cannot" in reply,
    ]

    def search(judge):
        return locate_safety_layers("toy", BORDERLINE[:10], "scaling", options=FEW, refusals=judge, folder=tmp_path)

    assert search(judges[0]).table == search(judges[0]).table
    with pytest.raises(DataError, match="another search"):
        search(judges[1])
