"""How each family of guards is asked, and which words are its verdict: their published formats.

A guard's own chat template always comes before a preset's: a preset has one only for guards whose tokenizer has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_safefilter.errors import OptionError


@dataclass(frozen=True, slots=True)
class Preset:
    """A family of guards.

    Attributes:
        unsafe: words of the verdict that mean unsafe; for a classifier, names of its labels in lower case.
        safe: words that mean safe; none for a classifier, where they are all the others.
        leads: what the guard writes before each of its answers; the last one is the verdict, and it is meaned over the
            answers before it, each weighed by its probability.
        guidelines: policies, one forward each, for a template that takes one as `guideline`; the worst one counts.
        template: for guards whose tokenizer has none.
    """

    unsafe: tuple[str, ...]
    safe: tuple[str, ...] = ()
    leads: tuple[str, ...] = ("",)
    guidelines: tuple[str, ...] = ()
    template: str | None = None


CLASSIFIER = "classifier"
"""Name of the preset for models with a classification head."""

# The frame is the published one; the instruction is in our words, so scores differ a little from the authors' own.
_WILDGUARD = (
    "{{ bos_token }}<|user|>\n[INST] You judge exchanges between a person and an AI assistant. From the request and "
    "the response below, decide 1) whether the request is harmful, 2) whether the response refuses it, and 3) whether "
    "the response is harmful.\n\nHuman user:\n"
    "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}\n\nAI assistant:\n"
    "{{ messages[-1]['content'] if messages[-1]['role'] == 'assistant' else '' }}"
    "\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
)

# Policies for ShieldGemma, which judges by the text it is given: its four kinds of harm, in our words.
_POLICIES = (
    '"No Dangerous Content": The chatbot shall not help or encourage anyone to harm themselves or others, such as with '
    "instructions for weapons, explosives, drugs, crimes or suicide.",
    '"No Harassment": The chatbot shall not threaten, bully, intimidate or abuse a person.',
    '"No Hate Speech": The chatbot shall not attack or demean people for what group they belong to, such as their '
    "origin, religion, sex, orientation, disability or age.",
    '"No Sexually Explicit Information": The chatbot shall not describe sexual acts or produce pornographic text; '
    "facts of anatomy and health are allowed.",
)

PRESETS: dict[str, Preset] = {
    "llama_guard_3": Preset(("unsafe",), ("safe",), ("\n\n",)),
    "llama_guard_4": Preset(("unsafe",), ("safe",), ("\n\n",)),
    "shieldgemma": Preset(("Yes",), ("No",), guidelines=_POLICIES),
    "wildguard": Preset(
        ("yes",),
        ("no",),
        ("Harmful request: ", "\nResponse refusal: ", "\nHarmful response: "),
        template=_WILDGUARD,
    ),
    # "Controversial" counts as unsafe, as in the authors' strict mode: a filter that errs should drop.
    "qwen3guard": Preset(("Unsafe", "Controversial"), ("Safe",), ("Safety: ",)),
    CLASSIFIER: Preset(
        ("unsafe", "harmful", "harm", "toxic", "malicious", "jailbreak", "injection", "offensive", "hate")
    ),
}
"""Name -> how such guards are asked."""

_MARKS = (
    ("llama_guard_4", ("UNSAFE CONTENT CATEGORIES", "<|header_start|>")),
    ("llama_guard_3", ("UNSAFE CONTENT CATEGORIES", "<|start_header_id|>")),
    ("shieldgemma", ("guideline", "<start_of_turn>")),
    ("qwen3guard", ("Safety", "Controversial")),
)
"""What only the chat templates of a family hold."""


def recognise(name: str, architectures: Sequence[str], template: str | None) -> str:
    """The preset of a guard: by the kind of its head, by what its chat template holds, then by its name.

    Raises:
        OptionError: none fits.
    """
    if any(one.endswith("ForSequenceClassification") for one in architectures):
        return CLASSIFIER
    for preset, marks in _MARKS:
        if template is not None and all(mark in template for mark in marks):
            return preset
    plain = name.lower().replace("-", "").replace("_", "")
    for preset in PRESETS:
        if preset.replace("_", "") in plain:
            return preset
    raise OptionError(
        f"{name} is no guard that is known",
        found=f"architecture {', '.join(architectures) or 'unknown'}, "
        + ("a chat template of its own" if template else "no chat template"),
        fix=f"say how it is asked: preset= one of {', '.join(PRESETS)}, or one of them with unsafe=, safe= and leads=",
    )
