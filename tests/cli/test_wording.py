"""One message, three languages."""

import pytest

from hf_safefilter.cli.wording import in_recipe, in_shell

FLAGS = {"max_length": "--max-length", "column": "--column", "layers": "--layers", "include_norms": "--include-norms",
         "freeze": "--freeze"}  # fmt: skip


@pytest.mark.parametrize(
    ("python", "shell", "recipe"),
    [
        ("`max_length=512`", "--max-length 512", "max_length: 512"),
        ('`columns={"prompt": "my q", "response": "a"}`', "--column prompt='my q' --column response=a",
         "columns: {prompt: my q, response: a}"),
        ("`layers=[8, 12]`", "--layers 8,12", "layers: [8, 12]"),
        ("`layers=('norm',)`", "--layers norm", "layers: [norm]"),
        ("`include_norms=True`", "--include-norms", "include_norms: true"),
        ("`max_length=...`", "--max-length ...", "max_length: ..."),
        ("`freeze=(2, 4)`", "--freeze 2-4", "freeze: [2, 4]"),
        ("`max_length=[...]`", "--max-length '[...]'", "max_length: [...]"),
        ("`unheard_of=3`", "unheard_of=3", "unheard_of: 3"),
        ("run `hf auth login`", "run `hf auth login`", "run `hf auth login`"),
        ("say `max_length=8` or `max_length=9`", "say --max-length 8 or --max-length 9",
         "say max_length: 8 or max_length: 9"),
    ],
)  # fmt: skip
def test_an_option_is_spelled_as_the_reader_writes_it(python, shell, recipe):
    assert in_shell(python, FLAGS) == shell
    assert in_recipe(python) == recipe


def test_a_command_speaks_of_flags_and_a_recipe_of_keys(call, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    code, _, err = call(
        "embed", rows, "--model", "toy", "--layers", "1", "--max-length", "1", "--output", tmp_path / "o"
    )
    assert code == 2 and "--max-length" in err and "max_length=" not in err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{path: {rows}, license: mit, source: tests}}\nmodel: {{name: toy, position: middle}}\n"
        "select: {drop_count: 1}\n"
    )
    code, _, err = call("run", recipe, "--output", tmp_path / "o")
    assert code == 2 and "model.position" in err and "position=" not in err and "--position" not in err
