"""Secrets in sentences: `the password for the portal is hunter2`, and not `the password is wrong`. Pure.

What a noun, a link and the look of the next word say together decides. A word that looks like any other is a secret only right at
the end of a clause about a password; a name that a sentence gives to a thing called token, key or secret needs digits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PHRASE = r"pass(?:word|phrase|code|wort)s?|passwd|kennwort|pw"
_NUMBER = (
    r"pin(?:[ -]?code)?|otp|(?:verification|one[- ]time|security|access|recovery|backup|confirmation|login|sms|2fa|mfa|"
    r"authentication|auth)[ -]codes?"
)
_OTHER = (
    r"(?:api|access|secret|private|signing|encryption|account|master|license)[ -]?keys?|(?:client |shared )?secrets?|"
    r"(?:(?:access|api|auth|refresh|session|bearer) )?tokens?"
)
_NOUN = rf"(?<![\w-])(?:(?P<password>{_PHRASE})|(?P<number>{_NUMBER})|(?P<other>{_OTHER}))(?![\w-])"
_VALUE = (
    r"(?:(?P<quote>[\"'`\u201c\u2018\u00ab]|\*\*)(?P<quoted>[^\"'`\u201d\u2019\u00bb*\r\n]{3,200})(?=[\"'`\u201d\u2019\u00bb*])"
    r"|(?P<plain>\d{3}[ -]\d{3}(?![\w-])|[^\s\"'`\u201c\u2018\u00ab,;<>(){}\[\]|]{3,200}))"
)
_ABOUT = r"(?:[ ]\([^()\r\n]{1,40}\)|[ ](?:for|of|to|on|at|in)[ ][^\r\n:;!?=]{1,60}?)?"
"""What the secret opens."""
_LINK = (
    r"(?:[ ]?(?P<sign>:|=>|=|->|\u2192|\||\t)[ ]?"
    r"|[ ](?:has been |have been |was |is |were |been )?(?:set|changed|reset|updated)[ ]to:?[ ]"
    r"|[ ](?:is|are|was|were|will be|ist|lautet)(?:[ ](?:now|currently|still))?:?[ ])"
)
_SAID = re.compile(rf"(?i){_NOUN}{_ABOUT}{_LINK}{_VALUE}")
_BARE = re.compile(rf"(?i){_NOUN}[ ](?:to[ ])?{_VALUE}")
_COMMON = frozenset(
    {
        "ancient", "available", "bad", "blank", "bogus", "broken", "case", "changing", "complex", "compromised",
        "compulsory", "confidential", "correct", "deliberately", "different", "due", "easy", "empty", "enough",
        "essential", "exempt", "expired", "fake", "falsch", "false", "fine", "free", "from", "full", "gone", "good",
        "guessable", "hard", "here", "hidden", "illegal", "immutable", "incorrect", "insecure", "invalid",
        "invisible", "irrelevant", "late", "leaked", "legacy", "legal", "likely", "live", "lost", "mandatory",
        "mine", "missing", "needed", "never", "new", "next", "none", "not", "nothing", "null", "obsolete", "obvious",
        "off", "old", "on", "online", "only", "open", "optional", "our", "ours", "outdated", "permanent", "personal",
        "plain", "pointless", "poor", "present", "private", "public", "random", "ready", "real", "relevant",
        "required", "richtig", "right", "safe", "same", "secret", "secure", "sensitive", "set", "short", "simple",
        "static", "strong", "sufficient", "temporary", "theirs", "there", "tied", "trivial", "true", "unavailable",
        "unchanged", "undefined", "unique", "unknown", "unsafe", "unset", "up", "useless", "valid", "visible",
        "void", "weak", "weg", "wrong", "yes", "yours",
    }
)  # fmt: skip
"""What people say about passwords; words that end like a participle or an adjective need no entry."""
_ENDINGS = ("ed", "ing", "able", "ible", "ful", "ory", "ive", "ous", "less", "ly", "ic", "ent", "ant", "en", "al")
_AMOUNT = re.compile(
    r"(?i)\d+[-\u2013]?(?:st|nd|rd|th|x|%|h|ms|s|min|chars?|characters?|digits?|letters?|bits?|bytes?|days?|hours?|minutes?|years?)?"
    r"|\d{4}-\d\d-\d\d(?:[T ].*)?|\d\d?:\d\d.*|[\d.,]+%?"
)
"""A count, a date or a time."""
_DIGITS = re.compile(r"[0-9]{4,12}|[0-9]{3}[ -][0-9]{3}")
_PHRASE_WORDS = re.compile(r"[a-z]{3,}(?:-[a-z]{3,}){2,}")
_SYMBOL = re.compile(r"[!@#$%^&*_+~?\\]")
_CAMEL = re.compile(r"[a-z][A-Z]")


def said_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the secrets stand that sentences name, in any order."""
    for pattern, judge in ((_SAID, _is_said), (_BARE, _is_bare)):
        at = 0
        while (found := pattern.search(text, at)) is not None:
            at = found.end("password" if found["password"] else "number" if found["number"] else "other")
            if judge(found, text):
                yield _span(found)


def _span(found: re.Match[str]) -> tuple[int, int]:
    if found["quoted"]:
        return found.span("quoted")
    start, end = found.span("plain")
    return start, start + len(found["plain"].rstrip(".,;:!?")) if end > start else end


def _is_said(found: re.Match[str], text: str) -> bool:
    if found["quoted"]:
        return not found["other"] or " " not in found["quoted"]
    word = found["plain"].rstrip(".,;:!?")
    if _looks_secret(found, word):
        return True
    if found["password"] and _PHRASE_WORDS.fullmatch(word):
        return True
    if not found["password"] or found["sign"] in {"|", "=", "\t"} or not word.isalpha() or len(word) < 4:
        return False
    rest = text[found.end("plain") :]
    is_end = word != found["plain"] or not rest.strip(" ") or rest.lstrip(" ")[:1] in "\r\n,;"
    return is_end and word.islower() and word not in _COMMON and not word.endswith(_ENDINGS)


def _is_bare(found: re.Match[str], text: str) -> bool:
    """Return whether a word beside a noun is its secret, without any link: `log in with password hunter2`."""
    if found["other"] or text[found.start() - 1 : found.start()] in {'"', "'", "`"}:
        return False
    return bool(found["quoted"] and " " not in found["quoted"]) or (
        not found["quoted"] and _looks_secret(found, found["plain"].rstrip(".,;:!?"))
    )


def _looks_secret(found: re.Match[str], word: str) -> bool:
    has_letter, has_digit = any(map(str.isalpha, word)), any(map(str.isdigit, word))
    if _DIGITS.fullmatch(word):
        return not found["other"]
    if _AMOUNT.fullmatch(word) or len(word) < 5:
        return False
    if has_digit and has_letter:
        return True
    return bool(found["password"]) and len(word) >= 6 and bool(_SYMBOL.search(word) or _CAMEL.search(word))
