import pickle

import pytest

from hf_safefilter import errors


@pytest.mark.parametrize(
    "name", ["DataError", "OptionError", "MissingError", "ModelError", "IntegrityError", "PublishError"]
)
def test_an_error_says_what_what_was_found_and_what_to_do_and_survives_a_process_border(name):
    error = getattr(errors, name)("the cheese is gone", found="one mouse", fix="buy cheese")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes: this is how worker processes report)
    assert type(again) is type(error)
    assert str(again) == "the cheese is gone\nfound: one mouse\nfix: buy cheese"
    assert isinstance(error, errors.SafefilterError)
