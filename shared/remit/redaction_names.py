"""Which names promise a credential: of members, headers, settings, and of whatever stands before a colon in text. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

_PARTS = (
    "password", "passwd", "passphrase", "passcode", "credential", "apikey", "accesskey", "accountkey", "encryptionkey",
    "masterkey", "privatekey", "secretkey", "sharedkey", "signingkey", "storagekey", "sessionid", "securitycode", "pincode",
    "accesstoken", "authtoken", "bearertoken", "refreshtoken", "clientsecret", "connectionstring", "connstr",
    "recoverycode", "backupcode", "passwort", "kennwort", "motdepasse",
)  # fmt: skip
"""Secret wherever they stand in a name, whatever separates or joins their words."""
_WORDS = frozenset(
    {
        "authorization", "bearer", "cookie", "cookies", "creds", "cvc", "cvv", "jwt", "otp", "pwd", "secret", "secrets", "token",
        "tokens",
    }
)  # fmt: skip
"""Secret as a word of its own, wherever it stands in a name."""
_LAST = frozenset({"auth", "pass", "pin", "psw", "pw"})
"""Secret only as the last word: `auth` is, `auth_method` is not."""
_ABOUT = frozenset(
    {
        "age", "algorithm", "at", "budget", "consent", "count", "counts", "date", "enabled", "endpoint", "expiration",
        "expired", "expires", "expiry", "format", "length", "lifetime", "limit", "limits", "method", "name", "names",
        "policies", "policy", "required", "scheme", "status", "ttl", "type", "types", "updated", "uri", "url", "usage",
        "used",
    }
)  # fmt: skip
"""A name that ends in one of these says something about a secret and does not hold it; its value is looked at all the same."""
_CURSORS = frozenset({"continuation", "cursor", "next", "page", "previous", "sync"})
"""A token beside one of these words turns pages; agents need it, and it opens nothing."""
_NUMBERS = (
    "password", "passwd", "passcode", "pincode", "securitycode", "recoverycode", "backupcode", "otp", "pin", "cvc", "cvv",
    "pwd", "pass", "psw", "pw",
)  # fmt: skip
"""Under every other name a number is a count."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def is_secret_member(name: str, value: JsonValue) -> bool:
    """Return whether a member holds a credential by its name; flags, nulls and counts hold none."""
    if value is None or isinstance(value, bool) or value == "":
        return False
    if isinstance(value, int | float):
        words = _words(name)
        joined = "".join(words)
        return is_secret_name(name) and any(part in words or (len(part) > 4 and part in joined) for part in _NUMBERS)
    return is_secret_name(name)


def is_secret_name(name: str) -> bool:
    """Return whether what bears this name is a credential; camel case, separators and trailing numbers do not matter."""
    words = _words(name)
    spoken = [word for word in words if not word.isdigit()]
    if not spoken or spoken[-1] in _ABOUT:
        return False
    if any(part in "".join(words) for part in _PARTS):
        return True
    if spoken[-1] in _LAST:
        return True
    found = _WORDS.intersection(spoken)
    return bool(found) and not (found <= {"token", "tokens"} and _CURSORS.intersection(spoken))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]
