"""Conversations -> text, through the model's own chat template, with the place of the scored response in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import ModelError
from hf_safefilter.rows import TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
"""Name of the template for models that have none and were not trained on chats: turns, a line each."""

_PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"

# Some templates write today's date into the system turn: without a pin, representations would change by the day.
_PINNED_DATE = "01 Jan 2025"

# transformers marks control tokens in user text with these two characters; what holds them is treated like one.
OPEN, CLOSE = "\U000f0000", "\U000f0001"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        text: the rendering; control tokens in user text stand between `OPEN` and `CLOSE`.
        start: where the scored response starts, in characters.
        stop: where it ends.
        marked: whether there are such control tokens.
        reason: "" or why it could not be rendered: ``template_refused``, ``response_not_rendered``.
    """

    text: str = ""
    start: int = 0
    stop: int = 0
    marked: bool = False
    reason: str = ""


class Renderer:
    """Renders conversations by one template, compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source = template_source(tokenizer, chat_template)
        self.adds_special_tokens = chat_template == PLAIN
        self._template = None if self.source is None else _compile_jinja_template(self.source)
        self._variables: dict[str, Any] = tokenizer.special_tokens_map | {
            "date_string": _PINNED_DATE,
            "strftime_now": lambda _: _PINNED_DATE,
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }
        self._controls = control_pattern(tokenizer, self.source or "")

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        """The rendering of a whole conversation, whose last message is the scored response."""
        from jinja2 import TemplateError

        contents = [_clean(content) for _, content in messages]
        marked = [self._marked(content) for content in contents]
        if messages[-1][0] == TEXT:
            return Rendered(marked[-1], 0, len(marked[-1]), marked != contents)
        if self._template is None:
            raise ModelError(
                "this model has no chat template",
                fix="pass chat_template= (a Jinja template, or 'plain' for a model that was not trained on chats)",
            )
        roles = [role for role, _ in messages]
        try:
            text = self._rendering(roles, marked)
            blank = _absent_from(contents)
            frame = self._rendering(roles, [*marked[:-1], blank])
        except TemplateError:
            # e.g. "roles must alternate": the template's own words about the row's shape
            return Rendered(reason="template_refused")
        head, found, tail = frame.partition(blank)
        if not found or blank in tail or not text.startswith(head) or not text.endswith(tail):
            return Rendered(reason="response_not_rendered")
        stop = len(text) - len(tail)
        if stop <= len(head):
            return Rendered(reason="response_not_rendered")
        return Rendered(text, len(head), stop, marked != contents)

    def _rendering(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return self._template.render(messages=messages, **self._variables)

    def _marked(self, content: str) -> str:
        if OPEN in content or CLOSE in content:
            content = content.replace(OPEN, "").replace(CLOSE, "")
        return self._controls.sub(f"{OPEN}\\g<0>{CLOSE}", content)


def template_source(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """The Jinja source in use; None for a model without a template when none is given."""
    if chat_template is not None:
        return _PLAIN_TEMPLATE if chat_template == PLAIN else chat_template
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def template_digest(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """``sha256:`` of the template in use, with the date that is pinned in it; of nothing where there is none."""
    source = template_source(tokenizer, chat_template) or ""
    return "sha256:" + hashlib.sha256(f"{_PINNED_DATE}\0{source}".encode()).hexdigest()


def control_pattern(tokenizer: PreTrainedTokenizerBase, source: str) -> re.Pattern[str]:
    """Matches every control token: the special ones, and other added tokens that the template itself writes."""
    added = tokenizer.added_tokens_decoder.values()
    controls = [t.content for t in added if t.special or (t.content in source and not t.content.isspace())]
    longest_first = sorted(filter(None, controls), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _clean(content: str) -> str:
    """Text a tokenizer can take: lone surrogates become the replacement character."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return content


def _absent_from(contents: Sequence[str]) -> str:
    """A word that stands nowhere in the conversation, to find the place of the response in the rendering."""
    number = 0
    while any(f"\ue000{number}\ue001" in content for content in contents):
        number += 1
    return f"\ue000{number}\ue001"
