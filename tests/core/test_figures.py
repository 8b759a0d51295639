"""The colours of all plots, as the colour-blind see them, and texts from data."""

import numpy as np
import pytest
from colour_vision import MISSING, lab

from hf_safefilter.figures import BLUE, GREY, RED, drawable


@pytest.mark.parametrize("kind", MISSING)
def test_the_colour_blind_tell_the_colours_apart(kind):
    blue, red, grey = (lab(colour, MISSING[kind]) for colour in (BLUE, RED, GREY))
    assert np.linalg.norm(blue - red) > 60
    assert min(np.linalg.norm(blue - grey), np.linalg.norm(red - grey)) > 25


def test_a_text_from_data_fits_on_a_line_and_is_no_mathematics():
    assert drawable(" two\nlines ", "?") == "two lines"
    assert drawable("x" * 41, "?") == "x" * 39 + "…" and drawable("x" * 40, "?") == "x" * 40
    assert drawable("$x_2$", "?") == r"\$x_2\$"
    assert drawable("\u6f22\u5b57", "line 3") == "line 3"
