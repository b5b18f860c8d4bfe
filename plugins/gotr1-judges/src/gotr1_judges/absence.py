"""Reads from a sentence in English that an object is not in a picture. A sentence that is not sure says nothing."""

from __future__ import annotations

import re
from typing import Final

NONE: Final = frozenset(
    {"none", "null", "no", "n/a", "nothing", "not found", "not present", "not visible", "not applicable", "absent", "missing"}
)
"""Complete sentences which say that nothing is there."""
_SENTENCE: Final = re.compile(r"[^.!?:\n]+")
_PICTURE: Final = r"(?:picture|image|photo|scene)"
_IN_PICTURE: Final = r"(?:in|from|looking\ at|based\ on|according\ to)\ (?:the|this|that|your)"
_SEEN: Final = rf"(?:present|visible|shown|depicted|found|detected|there|in\ (?:the|this)\ {_PICTURE})"
_SHOWS: Final = r"(?:contain|show|include|have|depict)"
_SORRY: Final = re.compile(r"^(?:i'm |i am )?(?:sorry|unfortunately)[, ]+(?:but )?")
_ABSENT: Final = re.compile(
    rf"""(?:(?:{_IN_PICTURE}|(?:up)?on|after)(?:\ [\w-]+)?(?:\ {_PICTURE}|\ inspection|\ examination),?\ )?
    (?:there(?:\ (?:is|are|was|were)|'s)\ (?:no\b|none\b|nothing\b|not\ (?:a|an|any)\b)
    | there\ (?:isn't|aren't|wasn't|weren't)\ (?:a|an|any)\b
    | (?:no(?!,)|none|nothing)\b.*\b(?:{_SEEN}|be\ seen)\b(?!\ (?:is|are)\b)
    | no\ (?!(?:idea|answer|response|comment|clue|change|thanks?)\b)[\w-]+(?:\ [\w-]+){{0,3}}$
    | (?:the|this)\ {_PICTURE}\ (?:does\ not|doesn't|did\ not|didn't)\ {_SHOWS}\b
    | (?:the|this)\ {_PICTURE}\ (?:has|contains|shows|includes)\ (?:no|none|nothing)\b
    | .*\b(?:is|are|was|were)(?:\ not|n't)\ {_SEEN}\b
    | .*\b(?:is|are)\ (?:absent\b|missing\b(?!\ (?:a|an|its|his|her|their|one|some)\b))
    | (?:[\w-]+\ ){{0,4}}not\ (?:found|in\ (?:the|this)\ {_PICTURE})$
    | .*\b(?:does|do|did)(?:\ not|n't)\ (?:appear|exist)\b
    | .*\b(?:cannot|can\ not|can't|could\ not|couldn't)\ be\ (?:found|seen|detected)\b
    | i\ (?:do\ not|don't|did\ not|didn't)\ (?:see|find|detect)\b
    | i\ (?:cannot|can\ not|can't|could\ not|couldn't)\ (?:find\b|see\ (?:a|an|any)\b))""",
    re.VERBOSE,
)
# Words of sentences that are not sure, say more than that nothing is there, or are about the picture, the question or the answer itself.
_UNSURE: Final = re.compile(
    r"\b(?:if|whether|sure|certain|maybe|perhaps|may|might|seems?|probably|likely|think|tell|know|well|clear(?:ly)?|full(?:y)?|entire(?:ly)?"
    r"|because|since|too|but|except|besides|apart|only|other|more|further|another|second|doubts?|questions?|way|need|problem|reasons?"
    r"|box(?:es)?|coordinates?|label|access|able|unable|cut|left|right|where|nothing i)\b"
    r"|\bno (?:phrase|prompt|description|instructions?|information|context|input)\b|\bno .*\b(?:provided|attached|given|uploaded)$"
    rf"|\b(?:see|find|detect) (?:the|this|that|an?|any|your) {_PICTURE}s?\b"
    rf"|\bno {_PICTURE}s?\b(?! (?:frame|of|on)\b)"
    rf"|^(?:the|this|that|your) {_PICTURE} (?:(?:is|was)(?: not|n't)|does(?: not|n't) (?:appear|exist)"
    r"|(?:can|could)(?: ?not|n't) be|is \w+$)",
)


def says_nothing_there(text: str) -> bool:
    """Returns true if a sentence of an answer is one of `NONE` or says that the object is not there, and no sentence is unsure."""
    plain = text.lower().replace("’", "'").replace("*", "")
    sentences = [_SORRY.sub("", " ".join(sentence.split()).strip(" ,;`\"'()")) for sentence in _SENTENCE.findall(plain)]
    absent = any(sentence in NONE or _ABSENT.match(sentence) for sentence in sentences)
    return absent and not any(map(_UNSURE.search, sentences))
