"""The language of a text, by its script and, in Latin script, by its most frequent small words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

UNKNOWN = "unknown"

_WORD = re.compile(r"[^\W\d_]+")
_SMALL_WORDS = {
    "en": "the of and to is in that it you for with are not i this your be can on as how my do",
    "de": "der die das und ist nicht ein eine zu mit von ich sie den wie auf für es dem sich kann",
    "es": "el los las que y en un una es no por para con del cómo se lo mi puedo más su como",
    "fr": "le les des est et un une pour dans pas vous je du ce que qui ne sur au comment mon avec",
    "it": "il di che per un una non sono con della come si del gli mi posso è questo le più",
    "pt": "o os as que um uma não para com como do da em se mais eu é isso meu você por",
    "nl": "de het een en van niet dat te ik je hoe op met voor zijn is kan mijn dit deze",
}
_WORDS = {language: frozenset(words.split()) for language, words in _SMALL_WORDS.items()}
_LEAST = 2  # small words that must be there: one alone is often a name, or a word of several languages


def language_of(text: str) -> str:
    """A code such as "en", the name of a script other than Latin such as "cyrillic", or `UNKNOWN`."""
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    if not scripts:
        return UNKNOWN
    script = scripts.most_common(1)[0][0]
    if script != "LATIN":
        return script.lower() or UNKNOWN
    words = _WORD.findall(text.casefold())
    words_known = {language: sum(word in small for word in words) for language, small in _WORDS.items()}
    best = max(words_known, key=lambda language: words_known[language])
    return best if words_known[best] >= _LEAST else UNKNOWN
