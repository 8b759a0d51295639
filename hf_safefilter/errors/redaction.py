"""What may be shown of a text: no password, no token, nothing that steers a terminal or turns the reading direction.

Everything that leaves the program goes through here: errors, the command line, cards and records.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = "***"

_SECRET_KEYS = (
    r"access[-_]?key(?:[-_]?id)?|access[-_]?token|api[-_]?key|auth(?:orization)?|auth[-_]?token|client[-_]?secret|"
    r"credentials?|key|pass(?:wd|word|phrase)?|private[-_]?key|pwd|secret(?:[-_]?key)?|sig(?:nature)?|token|"
    r"x-amz-(?:credential|security-token|signature)|x-goog-(?:credential|signature)"
)
_ADDRESS = re.compile(  # user and password; a password may hold a slash, a port is none, and a path has one slash
    r"(?<=[\w+.-]{2}:/)(/?)(?:[^\s/?#\"'<>]*|[^\s/?#@:]*:(?!\d+(?:[/?#]|$))[^\s@\"'<>]{0,4096})@"
)
_PARAMETER = re.compile(rf"(?i)([?&;#](?:{_SECRET_KEYS})=)[^\s&;#\"'<>)\]}}]+")
_HEADER = re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+|\bbearer\s+(?=\S{20}))[\w.~+/=-]+")
_TOKEN = re.compile(  # by their makers' prefixes: Hugging Face, GitHub, GitLab, OpenAI and Anthropic, Slack, Amazon
    r"(?<![A-Za-z0-9])(?:(hf_|api_org_|gh[opusr]_)[A-Za-z0-9]{20,}|(github_pat_|glpat-|sk-|xox[abprs]-)[\w-]{20,}"
    r"|(AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9]))"
)

# whole sequences first, so that their letters do not stay behind
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements, erasure
    r"|(?:\x1b[P\]X^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f\n]*(?:\x07|\x1b\\|\x9c)"  # with a text
    r"|\x1b[ -/]*[0-~]?"
)
_BREAKS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    "\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"  # nothing to see
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def redacted(text: str) -> str:
    """`text` without passwords and tokens: those in addresses and headers, and those that their form gives away."""
    text = _ADDRESS.sub(rf"\g<1>{HIDDEN}@", text)
    text = _HEADER.sub(rf"\g<1>{HIDDEN}", _PARAMETER.sub(rf"\g<1>{HIDDEN}", text))
    return _TOKEN.sub(lambda match: f"{match[1] or match[2] or match[3]}{HIDDEN}", text)


def shown(text: str) -> str:
    """`text` as a terminal or a card may show it: redacted, in one direction, with line breaks and tabs alone."""
    text = _ESCAPES.sub("", text)
    text = _UNSEEN.sub("", _BREAKS.sub("\n", text))
    return redacted(_SURROGATES.sub("\ufffd", text))


def everywhere(value: Any, clean: Callable[[str], str]) -> Any:
    """Plain values with `clean` applied to every text and key in them, those of lists and mappings included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {everywhere(key, clean): everywhere(item, clean) for key, item in value.items()}
    return [everywhere(item, clean) for item in value] if isinstance(value, (list, tuple)) else value
