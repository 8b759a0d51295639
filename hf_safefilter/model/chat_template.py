"""A model's chat template: which one is used, and what it writes for a list of messages, as a trainer would have it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_safefilter.errors import ModelError
from hf_safefilter.model.bounded_template import TooMuch, compiled, refill

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

PLAIN, RAW = "plain", "raw"
"""Names of the templates for models that have none and were not trained on chats: turns, a line each; or one turn right
after the other, as TRL joins a prompt and a completion that are texts."""

# The newline is an expression: one that follows a block is taken away by the way transformers sets Jinja up.
_OWN = {
    PLAIN: "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\\n' }}{% endfor %}",
    RAW: "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}

PINNED_DAY = datetime(2025, 1, 1)
"""Some templates write today's date into the system turn: without a pin, representations would change by the day."""

TOOL_USE = "tool_use"
"""Name of the template that transformers takes for conversations with tools, where a model has several."""

# What the expressions of a template raise over a row, where it does not refuse the row outright.
_TRIPS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)

_LONGEST = 1_000_000  # characters of a template; those in use have ten thousand

_REASONING = ("reasoning_content", "thinking", "reasoning")
_PROBE = "\ue000probe\ue001"

Turn: TypeAlias = dict[str, Any]


class Refused(Exception):
    """The template does not take this conversation: "roles must alternate", or whatever its author wrote."""


class ChatTemplate:
    """A compiled template with the variables of a tokenizer.

    Args:
        tokenizer: The tokenizer, whose special tokens the template may name.
        source: Jinja source.

    Raises:
        ModelError: The source is not valid Jinja.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.source = source
        self._template = _compiled(source)
        self._variables = {**tokenizer.special_tokens_map, "strftime_now": PINNED_DAY.strftime, "documents": None}
        # Templates of models for text and images want content as a list of parts.
        self._in_parts = False
        self._in_parts = not self._shows_content() and self._shows_parts()

    def render(
        self,
        turns: Sequence[Turn],
        *,
        header: bool = False,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the places of what stands between ``{% generation %}`` and ``{% endgeneration %}`` in it.

        Args:
            turns: Messages with role, content and whatever other keys the template may read.
            header: Whether the text ends with the header after which the model would answer.
            tools: JSON schemas of tools.
            options: Further variables of the template.

        Raises:
            Refused: The template does not take these turns.
        """
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import _render_with_assistant_indices

        given = self._variables | dict(options or {}) | {"add_generation_prompt": header}
        turns = [_with_reasoning(turn) for turn in turns]
        if self._in_parts:
            turns = [_in_parts(turn) for turn in turns]
        refill(self._template)
        try:
            text, blocks = _render_with_assistant_indices(  # type: ignore[no-untyped-call]  # transformers has no types here
                self._template, turns, list(tools) if tools else None, **given
            )
        except (TemplateError, *_TRIPS) as error:
            raise Refused(str(error)) from error
        return text, blocks

    def text(
        self,
        turns: Sequence[Turn],
        header: bool = False,
        *,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text alone; see `render`."""
        return self.render(turns, header=header, tools=tools, options=options)[0]

    def _shows_content(self) -> bool:
        for turns in ([_turn("user")], [_turn("user"), _turn("assistant")]):
            try:
                if _PROBE in self.text(turns):
                    return True
            except Refused as refused:
                if isinstance(refused.__cause__, TooMuch):
                    raise ModelError(
                        "the chat template is not one: for a conversation of one or two turns " + str(refused),
                        fix="pass another with `chat_template=...`",
                    ) from refused
                continue
        return False

    def _shows_parts(self) -> bool:
        self._in_parts = True
        return self._shows_content()

    @cached_property
    def literals(self) -> list[str]:
        """Text that stands in the template, outside and inside its expressions."""
        from jinja2.nodes import Const, TemplateData

        tree = self._template.environment.parse(self.source)
        constants = [node.value for node in tree.find_all(Const) if isinstance(node.value, str)]
        return [*(node.data for node in tree.find_all(TemplateData)), *constants]


def _turn(role: str) -> Turn:
    return {"role": role, "content": _PROBE}


def _with_reasoning(turn: Turn) -> Turn:
    """The turn with its reasoning under every name that a template may read, as transformers hands it over."""
    reasoning = next((turn[name] for name in _REASONING if turn.get(name) is not None), None)
    return turn if reasoning is None else {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def _in_parts(turn: Turn) -> Turn:
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def _compiled(source: str) -> Template:
    from jinja2 import TemplateSyntaxError

    if len(source) > _LONGEST:
        raise ModelError(f"the chat template has {len(source)} characters", fix="check which file it is")
    try:
        return compiled(source)
    except TemplateSyntaxError as error:
        raise ModelError(
            "the chat template is not valid Jinja", found=f"line {error.lineno}: {error.message}", fix="mend it"
        ) from error
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # of the compiler of Python underneath
        raise ModelError(
            "the chat template cannot be compiled", found=type(error).__name__, fix="use one that is nested less deeply"
        ) from error


def template_source(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, with_tools: bool = False
) -> str | None:
    """The Jinja source in use; None for a model without a template when none is given.

    Args:
        tokenizer: The tokenizer.
        chat_template: A source, "plain", "raw", or the name of one of the model's own templates.
        with_tools: Whether the conversation has tools, for which some models have a template of their own.

    Raises:
        ModelError: The model has several templates, none of which is the default.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        if chat_template is None and with_tools and TOOL_USE in own:
            return str(own[TOOL_USE])
        name = "default" if chat_template is None else chat_template
        if name in own:
            return str(own[name])
        if chat_template is None:
            raise ModelError(
                "this model has several chat templates and none is the default",
                found=", ".join(sorted(own)),
                fix=f"name the one that you will train with, e.g. `chat_template={min(own)}`",
            )
    if chat_template is not None:
        return _OWN.get(chat_template, chat_template)
    return own or None


def template_digest(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """``sha256:`` of the template in use and of the day that is pinned in it; of nothing where there is none."""
    sources = dict.fromkeys(template_source(tokenizer, chat_template, tools) or "" for tools in (False, True))
    return "sha256:" + hashlib.sha256("\0".join([f"{PINNED_DAY:%Y-%m-%d}", *sources]).encode()).hexdigest()


def no_template() -> ModelError:
    """The error of a model that has no template where none is given."""
    return ModelError(
        "this model has no chat template",
        fix="pass `chat_template=...`: a Jinja template, or 'plain' for a model that was not trained on chats",
    )
