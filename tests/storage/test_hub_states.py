"""What is not to be had from the Hub is explained alike, be it rows, references or a published set."""

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.errors import MissingError
from hf_safefilter.pipeline.published import open_published
from hf_safefilter.references.open import open_references
from hf_safefilter.storage.hub_states import hub_state

ASKED = {
    "rows": lambda name, folder: load_rows(name),
    "references": lambda name, folder: open_references(name),
    "a published set": lambda name, folder: open_published(name, None, folder),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(
    ("token", "says"), [(True, "the login does not show it"), (None, "nobody is logged in on this machine")]
)
def test_what_the_hub_does_not_have_or_hides(hub, tmp_path, monkeypatch, ask, token, says):
    if token is None:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(MissingError, match="there is no (file or )?folder 'me/nothing', and it cannot be had") as error:
        ask("me/nothing", tmp_path)
    assert says in error.value.found and "hf auth login" in error.value.fix


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_offline_is_named(tmp_path, monkeypatch, ask):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError) as error:
        ask("refs", tmp_path)
    assert error.value.found == "HF_HUB_OFFLINE is set, and there is no copy on this machine"
    assert "check the path" in error.value.fix


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_hub_out_of_reach_is_named(tmp_path, monkeypatch, ask):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingError) as error:
        ask("me/refs", tmp_path)
    assert error.value.found.startswith("the Hub cannot be reached (") and "HF_ENDPOINT" in error.value.fix


def test_a_revision_that_is_not_there_is_named(hub):
    HfApi().create_repo(f"{hub.user}/rows", repo_type="dataset")
    with pytest.raises(MissingError, match="no such revision"):
        load_rows(f"{hub.user}/rows", revision="2020")


def test_what_can_be_no_repository_is_said_to_be_none(tmp_path):
    with pytest.raises(MissingError, match="no name of a repository"):
        open_published("a set of mine", None, tmp_path)


def test_a_gated_repository_says_where_its_terms_are():
    error = GatedRepoError("no", response=httpx2.Response(403, request=httpx2.Request("GET", "http://127.0.0.1")))
    assert "accept its terms" in hub_state(error, "a folder").fix
