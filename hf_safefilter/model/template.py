"""Conversations -> text, through the model's own chat template, with the place of the scored response in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, cast

from hf_safefilter.data.conversations import TEXT
from hf_safefilter.errors import ModelError
from hf_safefilter.model.control_tokens import Controls

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
"""Name of the template for models that have none and were not trained on chats: turns, a line each."""

# The newline is an expression: one that follows a block is taken away by the way transformers sets Jinja up.
_PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\\n' }}{% endfor %}"

# Some templates write today's date into the system turn: without a pin, representations would change by the day.
_PINNED_DATE = "01 Jan 2025"

# What the expressions of a template can raise over a row: it may refuse it outright, or trip over it.
_REFUSALS = (ArithmeticError, LookupError, TypeError, ValueError)

_SPEECHES = (
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "tool", "assistant"),
    ("user", "assistant", "user", "assistant"),
)
"""Conversations that show what a template writes."""

_STAND_IN = "\ue000"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        text: the rendering; control tokens in user text stand between marks (see `control`).
        start: where the scored response starts, in characters.
        stop: where it ends.
        asked: where the prompt ends: with the header after which the model would answer, if the template has one.
        marked: whether there are marks.
        reason: "" or why it could not be rendered: ``template_refused``, ``response_not_rendered``.
    """

    text: str = ""
    start: int = 0
    stop: int = 0
    asked: int = 0
    marked: bool = False
    reason: str = ""


class Renderer:
    """Renders conversations by one template, compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None) -> None:
        self._template = None if source is None else _compiled(source)
        self._variables: dict[str, Any] = tokenizer.special_tokens_map | {
            "date_string": _PINNED_DATE,
            "strftime_now": lambda _: _PINNED_DATE,
            "tools": None,
            "documents": None,
        }
        self._has_header = "add_generation_prompt" in (source or "")
        shown = self._shown() if source is not None else []
        seams = {(text[max(0, at - 64) : at], text[at + 1 : at + 65]) for text in shown for at in _places(text)}
        self.controls = Controls(tokenizer, "\0".join([*_literals(self._template, source), *shown]), seams)

    def render(self, messages: Sequence[tuple[str, str]], prompt: bool = False) -> Rendered:
        """The rendering of a whole conversation, whose last message is the scored response.

        Args:
            messages: (role, content) pairs.
            prompt: find the end of the prompt too; without it `asked` is where the response starts.
        """
        from jinja2 import TemplateError

        contents = [_clean(content) for _, content in messages]
        marked = [self.controls.mark(content) for content in contents]
        if messages[-1][0] == TEXT:
            return Rendered(marked[-1], 0, len(marked[-1]), 0, marked != contents)
        if self._template is None:
            raise _no_template()
        roles = [role for role, _ in messages]
        blank = _absent_from(contents)
        try:
            text = self._rendering(roles, marked)
            frame = self._rendering(roles, [*marked[:-1], blank])
        except (TemplateError, *_REFUSALS):
            # e.g. "roles must alternate": the template's own words about the row's shape
            return Rendered(reason="template_refused")
        head, found, tail = frame.partition(blank)
        if not found or blank in tail or not text.endswith(tail):
            return Rendered(reason="response_not_rendered")
        start, stop, least = len(head), len(text) - len(tail), 0
        if not text.startswith(head):
            # A template that takes a response apart (reasoning, answer) writes other words around a blank one.
            start = len(commonprefix([text, head]))
            least = self._prompt_end(roles, marked, text, header=False)
        if not least <= start < stop:
            return Rendered(reason="response_not_rendered")
        asked = self._prompt_end(roles, marked, text, header=True) if prompt and self._has_header else start
        return Rendered(text, start, stop, min(asked, start), marked != contents)

    def ask(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        """The rendering of a conversation that waits for an answer, up to the header after which it would stand."""
        from jinja2 import TemplateError

        contents = [_clean(content) for _, content in messages]
        marked = [self.controls.mark(content) for content in contents]
        if self._template is None:
            raise _no_template()
        try:
            text = self._rendering([role for role, _ in messages], marked, header=True)
        except (TemplateError, *_REFUSALS):
            return Rendered(reason="template_refused")
        return Rendered(text, len(text), len(text), len(text), marked != contents)

    def _prompt_end(self, roles: Sequence[str], contents: Sequence[str], text: str, header: bool) -> int:
        """Length of the rendering of all turns but the last; of `text` where that does not start with it."""
        from jinja2 import TemplateError

        try:
            prompt = self._rendering(roles[:-1], contents[:-1], header)
        except (TemplateError, *_REFUSALS):
            return len(text)  # a template that wants an answer at the end
        return len(prompt) if text.startswith(prompt) else len(text)

    def _rendering(self, roles: Sequence[str], contents: Sequence[str], header: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        template = cast("Template", self._template)  # callers check that there is one
        return template.render(messages=messages, add_generation_prompt=header, **self._variables)

    def _shown(self) -> list[str]:
        """What the template writes around turns of one private character each."""
        from jinja2 import TemplateError

        shown = []
        for roles in _SPEECHES:
            try:
                shown.append(self._rendering(roles, [_STAND_IN] * len(roles), header=True))
            except (TemplateError, *_REFUSALS):
                continue  # not a conversation that this template takes
        return shown


@lru_cache(maxsize=8)
def _renderer(tokenizer: PreTrainedTokenizerBase, source: str | None, _vocabulary: int) -> Renderer:
    return Renderer(tokenizer, source)


def renderer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Renderer:
    """The renderer of a tokenizer, made once: some tokenizers have thousands of added tokens to look through."""
    return _renderer(tokenizer, template_source(tokenizer, chat_template), len(tokenizer))


def template_source(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """The Jinja source in use; None for a model without a template when none is given."""
    if chat_template is not None:
        return _PLAIN_TEMPLATE if chat_template == PLAIN else chat_template
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def template_digest(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """``sha256:`` of the template in use, with the date that is pinned in it; of nothing where there is none."""
    source = template_source(tokenizer, chat_template) or ""
    return "sha256:" + hashlib.sha256(f"{_PINNED_DATE}\0{source}".encode()).hexdigest()


def _no_template() -> ModelError:
    return ModelError(
        "this model has no chat template",
        fix="pass chat_template= (a Jinja template, or 'plain' for a model that was not trained on chats)",
    )


def _compiled(source: str) -> Template:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source)
    except TemplateSyntaxError as error:
        raise ModelError(
            "the chat template is not valid Jinja", found=f"line {error.lineno}: {error.message}", fix="mend it"
        ) from error


def _literals(template: Template | None, source: str | None) -> list[str]:
    """Text that stands in a template, outside and inside its expressions."""
    if template is None or source is None:
        return []
    from jinja2.nodes import Const, TemplateData

    tree = template.environment.parse(source)
    constants = [node.value for node in tree.find_all(Const) if isinstance(node.value, str)]
    return [*(node.data for node in tree.find_all(TemplateData)), *constants]


def _places(text: str) -> list[int]:
    return [place for place, letter in enumerate(text) if letter == _STAND_IN]


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
