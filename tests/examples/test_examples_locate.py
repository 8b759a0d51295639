"""The examples for layers are run, shorter than they are shown."""

import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_both_ways_find_the_same_blocks_of_the_toy_from_two_seeds(capsys):
    main = runpy.run_path(str(EXAMPLES / "locate_blocks.py"))["main"]
    main(seeds=(0, 1), prompts=150)
    said = capsys.readouterr().out
    assert re.findall(r"gap: blocks (\[.*?\])", said) == ["[0, 1]", "[0, 1]"]
    assert re.findall(r"scaling: block (\[.*?\])", said) == ["[0]", "[0]"]


def test_freezing_the_blocks_found_keeps_more_refusals_than_freezing_others():
    arms = ("plain tuning", "safety blocks 0-1 frozen", "blocks 4-5 frozen")
    rates = runpy.run_path(str(EXAMPLES / "freeze_blocks.py"))["main"](seeds=(0,), arms=arms)
    plain, found, others = (rates[arm][0] for arm in arms)
    assert found > max(plain, others) + 0.3
