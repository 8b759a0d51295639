"""Conversations -> text, through the model's own chat template, with the places of the turns that are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from hf_safefilter.data.conversations import TEXT, Conversation, answers_in
from hf_safefilter.data.messages import parsed
from hf_safefilter.model.chat_template import PLAIN, RAW, ChatTemplate, Refused, no_template, template_source
from hf_safefilter.model.control_tokens import Controls
from hf_safefilter.model.marking import Marking
from hf_safefilter.model.rendered_text import turns_in
from hf_safefilter.model.turn_places import Place, place_by_tags, place_turns, tiled
from hf_safefilter.model.unrendered import Unread, require_rendered, tools_of, without_media

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        text: The rendering; control tokens in the row's own words stand between marks (see `control_tokens`).
        places: The turns that are read, in order.
        marked: Whether there are marks.
        framed: Whether the tokenizer's own special tokens go around it.
        reason: "" or why it could not be rendered: ``template_refused``, ``response_not_rendered``,
            ``tools_not_json``, or ``unread_<key>`` for what stands in a message and not in the rendering.
    """

    text: str = ""
    places: tuple[Place, ...] = ()
    marked: bool = False
    framed: bool = False
    reason: str = ""


class Renderer:
    """Renders conversations by one template, compiled once.

    Args:
        tokenizer: The tokenizer.
        source: Jinja source of the template; None for a model that has none and reads plain text alone.
        framed: Whether the tokenizer's own special tokens go around each rendering: a template writes its own.
        ends: Whether each rendering ends with the end-of-text token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, source: str | None, framed: bool = False, ends: bool = False
    ) -> None:
        self._template = None if source is None else ChatTemplate(tokenizer, source)
        self._begin, self._end = (str(token) if token else "" for token in (tokenizer.bos_token, tokenizer.eos_token))
        self._framed, self._ends = framed, ends
        shown = [text for text in map(self._spoken, _SPEECHES) if text is not None]
        seams = {(text[max(0, at - 64) : at], text[at + 1 : at + 65]) for text in shown for at in _stand_ins(text)}
        literals = [] if self._template is None else self._template.literals
        self.controls = Controls(tokenizer, "\0".join([*literals, *shown]), seams)
        self._closing = shown[0].rpartition(_STAND_IN)[2] if shown else ""

    def render(
        self,
        conversation: Conversation,
        *,
        rejected: bool = False,
        everything: bool = False,
        ignore: Collection[str] = (),
    ) -> Rendered:
        """The rendering of a conversation without a reason.

        Args:
            conversation: The conversation.
            rejected: Render the rejected side of a preference pair.
            everything: Find the places of all turns, not of the answers alone.
            ignore: Keys of messages, kinds of parts, and "tools", that need not stand in the rendering.

        Raises:
            ModelError: There is no template.
        """
        try:
            return self._rendered(conversation, rejected, everything, ignore)
        except Unread as unread:
            return Rendered(reason=str(unread))
        except Refused:
            return Rendered(reason="template_refused")

    def _rendered(
        self, conversation: Conversation, rejected: bool, everything: bool, ignore: Collection[str]
    ) -> Rendered:
        messages = conversation.sides[-1] if rejected else conversation.messages
        if messages[-1].role == TEXT:
            return self._plain_text(messages[-1].content or "", everything)
        if self._template is None:
            raise no_template()
        marking = Marking(self.controls)
        turns = [marking.turn(without_media(said, ignore)) for said in messages]
        tools = marking.marked(tools_of(conversation.tools))
        options = marking.marked(
            parsed(conversation.template_options) if conversation.template_options else {}, apart=False
        )
        text, blocks = self._template.render(turns, tools=tools, options=options)
        require_rendered(turns, tools, text, ignore)
        render = partial(self._template.text, tools=tools, options=options)
        answers = answers_in(messages)
        if blocks:
            places = place_by_tags(render, turns, text, blocks, answers, self._closing)
        else:
            places = place_turns(render, turns, text, answers, self._closing)
        if len(places) < (min(1, len(answers)) if blocks else len(answers)):
            raise Unread("response_not_rendered")
        if everything or not answers:  # a guard is asked about a question alone, too
            places = tiled(render, turns, text, places, self._closing)
        if self._ends and not text.endswith(self._end):
            text += self._end
            places[-1] = places[-1]._replace(stop=len(text))
        return Rendered(text, tuple(places), marking.changed, self._framed)

    def ask(self, prompt: str) -> Rendered:
        """The rendering of a user's prompt, up to the header after which the model would answer."""
        if self._template is None:
            raise no_template()
        marking = Marking(self.controls)
        try:
            text = self._template.text([marking.turn({"role": "user", "content": prompt})], True)
        except Refused:
            return Rendered(reason="template_refused")
        return Rendered(text, marked=marking.changed, framed=self._framed)

    def _plain_text(self, content: str, everything: bool) -> Rendered:
        """A text as a trainer reads it: as it is, with the token by which the model learns to stop.

        All of it is trained on, and its control tokens are control tokens. A text that is already rendered by this
        template is read as the conversation that it is; it has its own first token.
        """
        content = Marking(self.controls).cleaned(content)
        text = content if self._end and content.endswith(self._end) else content + self._end
        framed = not (self._begin and content.startswith(self._begin))
        turns = turns_in(content, self._template.text) if self._template is not None else None
        if turns is None:
            return Rendered(text, (Place(0, 0, len(content), len(text)),), framed=framed)
        render = self._template.text  # type: ignore[union-attr]  # turns were found with it
        answers = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
        places = place_turns(render, turns, render(turns, False), answers, self._closing)
        places = tiled(render, turns, text, places, self._closing) if everything else places
        return Rendered(text, tuple(place for place in places if place.stop <= len(text)), framed=framed)

    def _spoken(self, roles: Sequence[str]) -> str | None:
        """What the template writes around turns of one private character each."""
        if self._template is None:
            return None
        try:
            return self._template.text([{"role": role, "content": _STAND_IN} for role in roles])
        except Refused:
            return None


@lru_cache(maxsize=8)
def _renderer(
    tokenizer: PreTrainedTokenizerBase, source: str | None, framed: bool, ends: bool, _vocabulary: int
) -> Renderer:
    return Renderer(tokenizer, source, framed, ends)


def renderer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, with_tools: bool = False) -> Renderer:
    """The renderer of a tokenizer, made once: some tokenizers have thousands of added tokens to look through."""
    source = template_source(tokenizer, chat_template, with_tools)
    return _renderer(tokenizer, source, chat_template in (PLAIN, RAW), chat_template == RAW, len(tokenizer))


def _stand_ins(text: str) -> list[int]:
    return [place for place, letter in enumerate(text) if letter == _STAND_IN]
