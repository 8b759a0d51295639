"""The pages tell the truth: links lead somewhere, commands exist, every public name and method is there."""

import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import typer
import yaml
from doc_pages import DOCS, GUIDE, ROOT, anchors_of, blocks_of, commands_of, every_page, links_of

import hf_safefilter
from hf_safefilter.cli import app
from hf_safefilter.data import reasons
from hf_safefilter.scores import METHODS, method

PAGES = every_page()
IDS = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings(path):
    for link in links_of(path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), f"{link} leads nowhere"
        if path.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} leads out of the pages that are built"
        assert not anchor or anchor in anchors_of(target.read_text(encoding="utf-8")), f"{link} names no heading"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_have_the_options_that_the_pages_name(path):
    program = typer.main.get_command(app)
    for block in blocks_of(path.read_text(encoding="utf-8")):
        for line in commands_of(block) if block.language == "sh" else ():
            words = shlex.split(line.partition(" > ")[0], comments=True)
            while "=" in words[0]:
                words = words[1:]
            if words[:2] == ["hf", "safefilter"]:
                words = words[1:]
            if words[0] in ("hf-safefilter", "safefilter"):
                require_understood(program, words[1:], line)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_flags_that_are_named_in_a_sentence_exist(path):
    code = " ".join(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<!\S)--[\w-]+", code)) - {"--help", "--index-url"}  # of every program, and of pip
    known, commands = set(), [typer.main.get_command(app)]
    while commands:
        command = commands.pop()
        known |= flags_of(command)
        commands += getattr(command, "commands", {}).values()
    assert named <= known, named - known


def require_understood(command, words, line):
    """Parse as the program does, but for the checks of values, so that no file has to be there."""
    known = {"--help"}
    while hasattr(command, "commands"):
        place = next((at for at, word in enumerate(words) if word in command.commands), None)
        assert place is not None, f"there is no such command: {line}"
        known |= flags_of(command)
        command, words = command.commands[words[place]], words[:place] + words[place + 1 :]
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= known | flags_of(command), f"{used - known - flags_of(command)}: {line}"


def flags_of(command):
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


def test_all_pages_of_the_guide_are_in_the_menu_and_run_in_its_order():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    parts = [next(iter(part.values())) if isinstance(part, dict) else part for part in menu]
    listed = [page for part in parts for page in ([part] if isinstance(part, str) else part)]
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert [page for page in listed if page.startswith("guide/")] == [f"guide/{name}.md" for name in GUIDE]


def test_every_public_name_has_its_place_in_the_reference():
    pages = [path.read_text(encoding="utf-8") for path in DOCS.glob("api/*.md")]
    named = [name for page in pages for name in re.findall(r"^::: hf_safefilter\.(\w+)$", page, re.MULTILINE)]
    assert sorted([*named, "__version__"]) == hf_safefilter.__all__


def test_every_method_is_on_its_page_with_what_its_class_says():
    text = (DOCS / "guide" / "methods.md").read_text(encoding="utf-8")
    lines = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", text, re.MULTILINE)}
    assert list(lines) == list(METHODS)
    for name, line in lines.items():
        score = method(name)
        paper = re.search(r"arXiv ([\d.]+)", score.SOURCE)
        source = f"[{score.SOURCE}](https://arxiv.org/abs/{paper[1]})" if paper else score.SOURCE
        assert line == f"| `{name}` | `{score.__name__}` | {score.MEASURES} | {score.REQUIRES} | {source} |"


def test_every_reason_for_an_unread_row_is_explained():
    text = (DOCS / "guide" / "rows.md").read_text(encoding="utf-8").partition("## Rows that cannot be scored")[2]
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert explained == {*reasons._ADVICE, "unread_"}, explained ^ {*reasons._ADVICE, "unread_"}


def test_every_error_is_on_its_page():
    written = runpy.run_path(str(DOCS / "write_errors.py"))["page"]()
    assert (DOCS / "errors.md").read_text(encoding="utf-8") == written, "write it anew: make fix"
    assert "**`…=…` is not known**" in written and "PublishError" in written
    assert written.count("\n- **") > 400


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings_handlers") is None:
        pytest.skip("mkdocs is not installed: pip install 'hf_safefilter[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert fetched_from_elsewhere(tmp_path) == set()


def fetched_from_elsewhere(site):
    """Addresses from which a browser would load something by itself."""
    linked = r"link(?=[^>]*rel=\"?(?:stylesheet|preconnect|icon))"
    loads = rf"<(?:script|img|iframe|{linked})[^>]*?(?:src|href)=\"?(?:https?:)?(//[^\"\s>]+)"
    styles = r"(?:url\(|@import )[\"']?(?:https?:)?(//[^\"')]+)"
    found = set()
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css"):
            text = path.read_text(encoding="utf-8")
            found |= {*re.findall(loads, text), *re.findall(styles, text)}
    return found
