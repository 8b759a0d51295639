"""Why rows cannot be scored: counted, put into words, with what to do about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hf_safefilter.columns import UNSCORABLE
from hf_safefilter.data.splits import parts_of

_UNREAD = "unread_"
_ADVICE = {
    "no_known_shape": 'say where things stand: `columns={"prompt": "question", "response": "reply"}`',
    "empty_row": "remove these rows: they hold nothing",
    "not_text": "correct or remove these rows: a prompt or an answer is no text",
    "unknown_role": "rename the roles to system, user, assistant and tool",
    "no_user_turn": "remove these rows: nobody asks in them",
    "no_assistant_turn": "remove these rows: nothing in them is trained on",
    "empty_prompt": "remove these rows: the prompt is empty",
    "empty_response": "remove these rows: the answer is empty",
    "tools_not_json": "write the tools as a JSON list, which trainers read",
    "template_options_not_known": "correct the column chat_template_kwargs: it must hold a mapping",
    "template_refused": "the chat template does not take these turns: order them, or pass another `chat_template=...`",
    "response_not_rendered": "the chat template leaves the answer out: pass another `chat_template=...`",
    "control_token": "correct these rows: they spell a control token that cannot be kept from becoming one",
    "too_long": "read them in windows: `too_long=windows`, or allow a larger `max_length=...`",
    "no_prompt": "plain text has no prompt: name methods other than ensemble and shift, e.g. `methods=probe`, "
    "and no position last_prompt",
    "non_finite": "use another number format: `dtype=float32`",
    "unread_trailing_turn": "turns after the last answer: leave them out with `ignore=['trailing_turn']`, "
    "or read them: `spans=all`",
}


def advice(reason: str) -> str:
    """What to do about rows with this reason."""
    if reason in _ADVICE:
        return _ADVICE[reason]
    if reason.startswith(_UNREAD):
        name = reason.removeprefix(_UNREAD)
        return f"what stands in {name!r} is not read: leave it out knowingly with `ignore=['{name}']`, or remove it"
    return "read the column 'unscorable'"


def reasons_in(ds: Any) -> Counter[str]:
    """How many rows of a data set, or of a dict of columns, have each reason; empty for rows that were not read yet."""
    if isinstance(ds, Mapping) and UNSCORABLE in ds:
        return Counter(filter(None, ds[UNSCORABLE]))
    found: Counter[str] = Counter()
    for part in parts_of(ds):
        if UNSCORABLE in (getattr(part, "column_names", None) or ()):
            found.update(filter(None, part.with_format("arrow")[UNSCORABLE].to_pylist() if len(part) else ()))
    return found


def listed(reasons: Mapping[str, int]) -> str:
    """The reasons in words, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count} {reason}" for reason, count in ordered)


def next_step(reasons: Mapping[str, int], otherwise: str) -> str:
    """What to do about the most frequent reason."""
    return advice(max(sorted(reasons), key=lambda reason: reasons[reason])) if reasons else otherwise
