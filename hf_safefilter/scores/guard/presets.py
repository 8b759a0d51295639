"""The published format of each family of guards: how it is asked, and which words are its verdict.

A guard's own chat template takes precedence: a preset has one only for guards whose tokenizer has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_safefilter.errors import OptionError


@dataclass(frozen=True, slots=True)
class Preset:
    """A family of guards.

    Attributes:
        unsafe: Words of the verdict that mean unsafe; for a classifier, names of its labels in lower case.
        safe: Words of the verdict that mean safe; empty for a classifier, whose other labels all mean safe.
        leads: What the guard writes before each of its answers. The last answer is the verdict; its probability is
            averaged over the answers before it, weighted by their probabilities.
        guidelines: Policies for a template that takes one as `guideline`, one forward pass each; the largest score
            counts.
        template: Chat template for guards whose tokenizer has none.
        variables: JSON of variables that the guard's template takes, "" where it needs none.
        names: What the name of such a guard has in it, in lower case without - and _; the preset's own if empty.
    """

    unsafe: tuple[str, ...]
    safe: tuple[str, ...] = ()
    leads: tuple[str, ...] = ("",)
    guidelines: tuple[str, ...] = ()
    template: str | None = None
    variables: str = ""
    names: tuple[str, ...] = ()


POLICY = "policy"
"""Name of the preset for models that judge by a policy in the user's own words."""

CLASSIFIER = "classifier"
"""Name of the preset for models with a classification head."""

# The format is the published one; the instruction is in our words, so scores differ slightly from the authors' own.
_WILDGUARD = (
    "{{ bos_token }}<|user|>\n[INST] You judge exchanges between a person and an AI assistant. From the request and "
    "the response below, decide 1) whether the request is harmful, 2) whether the response refuses it, and 3) whether "
    "the response is harmful.\n\nHuman user:\n"
    "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}\n\nAI assistant:\n"
    "{{ messages[-1]['content'] if messages[-1]['role'] == 'assistant' else '' }}"
    "\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
)

# Policies for ShieldGemma, which judges by the policy it is given: its four kinds of harm, in our words.
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
    # "Controversial" counts as unsafe, as in the authors' strict mode: in doubt a filter should drop a row.
    "qwen3guard": Preset(("Unsafe", "Controversial"), ("Safe",), ("Safety: ",)),
    "granite_guardian_3_3": Preset(
        ("yes",),
        ("no",),
        ("<score> ",),
        variables='{"guardian_config": {"criteria_id": "harm"}}',
        names=("graniteguardian3.3", "granite3.3guardian"),
    ),
    "granite_guardian": Preset(
        ("Yes",),
        ("No",),
        variables='{"guardian_config": {"risk_name": "harm"}}',
        names=("graniteguardian3.0", "graniteguardian3.1", "graniteguardian3.2", "granite3guardian"),
    ),
    POLICY: Preset(("unsafe",), ("safe",), names=("gptosssafeguard",)),
    CLASSIFIER: Preset(
        ("unsafe", "harmful", "harm", "toxic", "malicious", "jailbreak", "injection", "offensive", "hate")
    ),
}
"""Name -> format."""

_MARKS = (
    ("llama_guard_4", ("UNSAFE CONTENT CATEGORIES", "<|header_start|>")),
    ("llama_guard_3", ("UNSAFE CONTENT CATEGORIES", "<|start_header_id|>")),
    ("shieldgemma", ("guideline", "<start_of_turn>")),
    ("qwen3guard", ("Safety", "Controversial")),
    ("granite_guardian_3_3", ("guardian_config", "criteria_bank")),
    ("granite_guardian", ("guardian_config", "risk_name")),
)
"""Preset -> texts that together occur only in the chat templates of that family."""


def recognise(name: str, architectures: Sequence[str], template: str | None) -> str:
    """The preset of a guard, from the kind of its head, from its chat template, or else from its name.

    Raises:
        OptionError: None of them identifies a preset.
    """
    if any(architecture.endswith("ForSequenceClassification") for architecture in architectures):
        return CLASSIFIER
    for preset, marks in _MARKS:
        if template is not None and all(mark in template for mark in marks):
            return preset
    plain = name.lower().replace("-", "").replace("_", "")
    for preset, form in PRESETS.items():
        if any(known in plain for known in form.names or (preset.replace("_", ""),)):
            return preset
    raise OptionError(
        f"{name} is not a known guard",
        found=f"architecture {', '.join(architectures) or 'unknown'}, "
        + ("a chat template of its own" if template else "no chat template"),
        fix=f"set `preset=...` to one of {', '.join(PRESETS)}, if necessary with `unsafe=...`, `safe=...` and "
        "`leads=...`",
    )


def checked_words(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """The words that an option of a guard lists.

    Raises:
        OptionError: They are no texts, or one stands twice.
    """
    words = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
        fix = f'use for example `{name}=["no"]`'
        raise OptionError(f"`{name}={value!r}` is not a list of different texts", fix=fix)
    return words


def all_words(
    unsafe: Sequence[str], safe: Sequence[str], leads: Sequence[str], *, loosely: bool = False
) -> tuple[str, ...]:
    """All words of a verdict, those that mean unsafe first.

    Args:
        unsafe: Words that mean unsafe.
        safe: Words that mean safe.
        leads: What stands before each answer.
        loosely: Whether verdicts are read without regard to case and white space.

    Raises:
        OptionError: There are none for one of these, or a word means both.
    """
    if not (unsafe and safe and leads):
        raise OptionError(
            "a guard needs words for unsafe, words for safe, and the text before them",
            fix="pass `unsafe=...`, `safe=...` and `leads=...`",
        )
    words = (*unsafe, *safe)
    if len({bare(word) for word in words} - {""} if loosely else set(words)) < len(words):
        raise OptionError(
            "a word cannot mean both unsafe and safe", found=", ".join(words), fix="remove it from one of them"
        )
    return words


def bare(text: str) -> str:
    """Text without white space and case: servers give tokens without the space before, and models vary the case."""
    return "".join(text.split()).casefold()
