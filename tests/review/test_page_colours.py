"""The colours of the page, as the colour-blind see them in both themes."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from colour_vision import MISSING, lab

import hf_safefilter.review

CSS = (Path(hf_safefilter.review.__file__).parent / "page" / "page.css").read_text(encoding="utf-8")
THEMES = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_the_kinds_of_rows_are_told_apart(theme, kind):
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
    kinds = [colours[name] for name in sorted(colours) if name.startswith("kind-")] + [colours["muted"]]
    assert len(kinds) == 7
    for one, other in [*combinations(kinds, 2), (colours["kept"], colours["dropped"])]:
        assert np.linalg.norm(lab(one, MISSING[kind]) - lab(other, MISSING[kind])) > 20, (one, other)
