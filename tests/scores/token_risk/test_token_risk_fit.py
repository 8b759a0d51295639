"""What the adapters are trained on and how, what they find, and the artefact."""

import json

import numpy as np
import pytest
import torch
from scores.token_risk.conftest import BENIGN, SAFE, TARGETS, UNSAFE
from small_models import save_small_model

from hf_safefilter.data.conversations import as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, IntegrityError, MissingError, ModelError, OptionError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores import fitted_to, make
from hf_safefilter.scores.token_risk import RiskAdapters, TokenRiskScore, fit_token_risk
from hf_safefilter.scores.token_risk.adapter_options import AdapterOptions
from hf_safefilter.scores.token_risk.adapter_training import batches
from hf_safefilter.scores.token_risk.two_adapters import TwoAdapters
from hf_safefilter.storage import artifacts
from hf_safefilter.toy.corpus import mixed_rows, reference_rows

QUICK = {"steps": 2, "batch": 4, "rank": 2, "targets": TARGETS, "device": "cpu"}
RIGHTS = {"benign_license": "cc0-1.0", "benign_source": "sums"}


def ids_of(rows):
    return [row_id(one) for one in as_conversations(rows)]


def auroc(scores, bad):
    return np.mean([np.mean(one > scores[~bad]) + np.mean(one == scores[~bad]) / 2 for one in scores[bad]])


@pytest.fixture(scope="module")
def toy_adapters():
    unsafe, safe = reference_rows(16, 3)
    embed = EmbedLayers("toy", [4], device="cpu")
    index = ReferenceIndex.build(unsafe, safe, embed, license="cc0-1.0", source="toy corpus")
    return fit_token_risk(index, steps=15, batch=4, learning_rate=3e-3, device="cpu")


def test_risk_tells_unsafe_rows_from_benign_ones(toy_adapters):
    rows = mixed_rows(60, 0.3, 7)
    bad = np.array([row["label"] == "unsafe" for row in rows])
    columns = {name: [row[name] for row in rows] for name in ("prompt", "response")}
    found = TokenRiskScore(toy_adapters, device="cpu")(columns)["token_risk_score"]
    assert auroc(found, bad) > 0.9
    sizes = np.array([len(row["response"]) for row in rows])
    alike = (sizes > np.quantile(sizes[bad], 0.1)) & (sizes < np.quantile(sizes[bad], 0.9))
    assert auroc(found[alike], bad[alike]) > 0.8, "length alone would do"


def test_a_harmful_part_of_a_benign_answer_is_found_where_it_stands(toy_adapters):
    rows = mixed_rows(60, 0.3, 7)
    good = [row for row in rows if row["label"] == "safe"]
    harm = next(row["response"] for row in rows if row["label"] == "unsafe")
    parts = [row["response"] for row in good[:7]]
    whole, mixed = " ".join(parts), " ".join([*parts[:4], harm, *parts[4:]])
    before = " ".join(parts[:4])
    batch = {"prompt": [good[0]["prompt"]] * 3, "response": [whole, mixed, before]}
    step = TokenRiskScore(toy_adapters, device="cpu")
    found = step(batch)
    ends = [int(step.risks(as_conversations([{"prompt": p, "response": r}])).spans["stop"].max())
            for p, r in zip(batch["prompt"], batch["response"], strict=True)]  # fmt: skip
    assert found["token_risk_score"][1] > found["token_risk_score"][0]
    assert found["token_risk_stop"][1] > ends[2] - 1 and found["token_risk_start"][1] < ends[2] + ends[1] - ends[0]
    means = TokenRiskScore(toy_adapters, window=None, device="cpu")(batch)["token_risk_score"]
    assert found["token_risk_score"][1] - found["token_risk_score"][0] > means[1] - means[0]


def test_both_start_alike_and_see_their_own_rows_alone(references, adapters):
    facts = adapters.facts
    assert facts["degraded"]["rows"] == ids_of(UNSAFE) and facts["utility"]["rows"] == ids_of(SAFE)
    assert facts["training"]["steps"] == 12 == len(facts["utility"]["losses"]) == len(facts["degraded"]["losses"])
    for name, side in (("utility", "safe"), ("degraded", "unsafe")):
        own = facts[name]
        assert own["losses"][-1] < own["losses"][0]
        assert {key: own[key] for key in ("side", "license", "source", "references")} == {
            "side": side, "license": "mit", "source": "these tests", "references": references.digest,
        }  # fmt: skip
    options = AdapterOptions(steps=1, batch=1, learning_rate=0.1, rank=4, targets=TARGETS, seed=0)
    from hf_safefilter.scores.token_risk.risk_adapters import key_of

    fresh = TwoAdapters(key_of(facts), torch.device("cpu"), options)
    both = [fresh.tensors(name) for name in ("utility", "degraded")]
    assert all(torch.equal(both[0][path], both[1][path]) for path in both[0])
    assert sum(len(one) for one in both) == 2 * 2 * 4 * len(TARGETS)


def test_the_same_call_gives_the_same_artefact_and_another_seed_another(references):
    once = fit_token_risk(references, **QUICK)
    assert fit_token_risk(references.digest, **QUICK) == once
    assert fit_token_risk(references, **QUICK | {"seed": 1}) != once


def test_the_utility_adapter_learns_ordinary_rows_where_there_are_some(base, references, tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BENIGN), encoding="utf-8")
    given = fit_token_risk(references, benign=BENIGN, **RIGHTS, **QUICK)
    named = fit_token_risk(references, benign=str(path), benign_license="cc0-1.0", **QUICK)
    embed = EmbedLayers(base, [1], device="cpu")
    index = ReferenceIndex.build(UNSAFE, SAFE, embed, benign=BENIGN, license="mit", source="these tests")
    among = fit_token_risk(index, **QUICK)
    for one in (given, named, among):
        assert one.facts["utility"]["rows"] == ids_of(BENIGN)
        assert one.bytes_of("utility.safetensors") == given.bytes_of("utility.safetensors")
    refusing = fit_token_risk(references, **QUICK)
    assert refusing.bytes_of("degraded.safetensors") == given.bytes_of("degraded.safetensors")
    assert refusing.bytes_of("utility.safetensors") != given.bytes_of("utility.safetensors")
    assert (given.facts["utility"]["license"], given.facts["utility"]["source"]) == ("cc0-1.0", "sums")
    assert named.facts["utility"]["source"] == "sums.jsonl" and "sha256:" in named.facts["utility"]["revision"]
    assert among.facts["utility"]["side"] == "benign"


def test_every_row_is_seen_equally_often():
    options = AdapterOptions(steps=9, batch=4, learning_rate=0.1, rank=1, targets=("q_proj",), seed=3)
    parts = list(batches(6, options))
    assert np.bincount(np.concatenate(parts)).tolist() == [6] * 6
    assert sorted(np.concatenate(parts)[:6]) == list(range(6)) and [len(one) for one in parts] == [4] * 9
    assert [len(one) for one in batches(3, options)] == [3] * 9, "no row twice in a step"


def test_a_long_row_is_cut_to_learn_from_and_not_scored(references, adapters):
    long = {"prompt": "Count.", "response": "one two three " * 200}
    found = fit_token_risk(references, benign=[*BENIGN, long], **RIGHTS, **QUICK).facts["utility"]
    assert (len(found["rows"]), found["truncated"]) == (7, 1)
    scored = TokenRiskScore(adapters, device="cpu")({name: [long[name]] for name in long})
    assert np.isnan(scored["token_risk_score"][0]) and scored["token_risk_unscored"][0] == "too_long"
    assert (scored["token_risk_start"][0], scored["token_risk_stop"][0]) == (-1, -1)


def test_saved_and_loaded_it_is_the_same(adapters, tmp_path):
    again = RiskAdapters.load(adapters.save(tmp_path / "adapters"))
    assert again == adapters and TokenRiskScore(again) == TokenRiskScore(adapters.digest)
    files = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert files == {"manifest.json", "utility.safetensors", "degraded.safetensors"}


def test_a_changed_file_is_refused(adapters, references, tmp_path, monkeypatch):
    folder = adapters.save(tmp_path / "adapters")
    file = folder / "degraded.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"degraded\.safetensors is not the file"):
        RiskAdapters.load(folder)
    file.unlink()
    with pytest.raises(IntegrityError, match=r"degraded\.safetensors is not the file"):
        RiskAdapters.load(folder)
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    opened = RiskAdapters(artifacts.keep(adapters.save(tmp_path / "again"), RiskAdapters.KIND, RiskAdapters.VERSION))
    (artifacts.find(opened.KIND, opened.digest) / "utility.safetensors").write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=r"utility\.safetensors is not the file"):
        opened.tensors("utility")
    with pytest.raises(MissingError, match="not in the store"):
        TokenRiskScore("sha256:" + "0" * 64)


def test_weights_of_other_options_are_refused(adapters):
    files = {name: adapters.bytes_of(name) for name in ("utility.safetensors", "degraded.safetensors")}
    other = RiskAdapters.make({**adapters.facts, "training": {**adapters.facts["training"], "rank": 2}}, files)
    with pytest.raises(IntegrityError, match="utility adapter does not fit"):
        TokenRiskScore(other, device="cpu")({"prompt": ["a"], "response": ["b"]})


def test_it_is_made_by_name(references):
    assert fitted_to("token_risk", {}) == "references" and fitted_to("token_risk", {"adapters": "sha256:0"}) is None
    step = make("token_risk", references=references, window=7, **QUICK | {"targets": "q_proj, v_proj"})
    assert make("token_risk", adapters=step.adapters, window=7, device="cpu") == step
    assert step.opened.facts["training"]["targets"] == ["q_proj", "v_proj"]


def test_errors_say_what_to_do(references):
    for wrong, match in (
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"targets": ["query"]}, "LoRA targets query do not exist"),
        ({"targets": ()}, "none given"),
        ({"benign": BENIGN}, "benign rows need a license"),
        ({"benign": BENIGN, "benign_license": "mit"}, "benign rows need a source"),
    ):
        with pytest.raises(OptionError, match=match):
            fit_token_risk(references, **QUICK | wrong)
    with pytest.raises(DataError, match="2 of the benign rows are also among the unsafe"):
        fit_token_risk(references, benign=[*BENIGN, *UNSAFE[:2]], **RIGHTS, **QUICK)
    with pytest.raises(DataError, match="no row can be learned by the utility adapter"):
        fit_token_risk(references, benign=[{"prompt": "a", "response": ""}], **RIGHTS, **QUICK)
    with pytest.raises(OptionError, match="window=-1"):
        TokenRiskScore("sha256:" + "0" * 64, window=-1)


def test_when_memory_runs_out_batches_are_halved_and_nothing_else_changes(references, monkeypatch):
    from hf_safefilter.scores.token_risk import adapter_training
    from hf_safefilter.scores.token_risk import label_losses as losses

    expected, whole, sizes = fit_token_risk(references, **QUICK), losses.label_losses, []

    def short_of_memory(most):
        def run(model, rows, mask):
            sizes.append(len(rows))
            if len(rows) > most:
                raise torch.OutOfMemoryError
            return whole(model, rows, mask)

        return run

    monkeypatch.setattr(adapter_training, "label_losses", short_of_memory(2))
    found = fit_token_risk(references, **QUICK)
    assert sizes.count(4) == 4 and sizes.count(2) == 8
    for name in ("utility", "degraded"):
        np.testing.assert_allclose(found.facts[name]["losses"], expected.facts[name]["losses"], atol=1e-3)
        for path, one in expected.tensors(name).items():
            torch.testing.assert_close(found.tensors(name)[path], one, rtol=1e-2, atol=1e-4)
    monkeypatch.setattr(losses, "label_losses", short_of_memory(2))
    columns = {name: [row[name] for row in BENIGN] for name in ("prompt", "response")}
    step = TokenRiskScore(expected, device="cpu")
    before = step(columns)["token_risk_score"]
    assert max(sizes) == len(BENIGN)
    monkeypatch.undo()
    np.testing.assert_allclose(before, step(columns)["token_risk_score"], rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(losses, "label_losses", short_of_memory(0))
    with pytest.raises(ModelError, match="a single row of"):
        step(columns)


@pytest.mark.parametrize("name, targets", [("gpt_neox", "query_key_value"), ("gemma3", "v_proj"), ("opt", "fc1")])
def test_other_architectures_are_scored_together_as_alone(name, targets, tmp_path):
    """Among them one that reads images too, with layers of the same names for these."""
    embed = EmbedLayers(str(save_small_model(tmp_path / name, name)), [1], device="cpu")
    index = ReferenceIndex.build(UNSAFE[:4], SAFE[:4], embed, license="mit", source="these tests")
    step = TokenRiskScore(fit_token_risk(index, **QUICK | {"targets": targets, "learning_rate": 1e-2}), device="cpu")
    rows = [UNSAFE[0], {"prompt": "Tell all", "response": "and more " * 20}]
    together = step({key: [row[key] for row in rows] for key in rows[0]})["token_risk_score"]
    alone = [step({key: [row[key]] for key in row})["token_risk_score"][0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)
    assert np.abs(together).min() > 0


def test_without_peft_the_extra_is_named(references, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"hf_safefilter\[train\]"):
        fit_token_risk(references, **QUICK)


def test_a_training_that_diverges_is_stopped(references, monkeypatch):
    from hf_safefilter.scores.token_risk import adapter_training

    whole = adapter_training.label_losses
    monkeypatch.setattr(adapter_training, "label_losses", lambda *parts: whole(*parts) * float("inf"))
    with pytest.raises(ModelError, match=r"loss of the utility adapter became inf at step 1"):
        fit_token_risk(references, **QUICK)
