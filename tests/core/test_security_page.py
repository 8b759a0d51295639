"""Each promise of the page on security names a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_line_names_a_test_that_is_there():
    page = PAGE.splitlines()
    lines = [line for line, after in zip(page, page[1:], strict=False) if line.startswith("| ") and after[:4] != "|---"]
    assert len(lines) >= 30
    for line in lines:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", line)
        assert named, line
        for file, test in named:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in text, (file, test)
