"""What broken machinery says: who may retry, and what to do about it. A "no" is a value (`Reason`), never an exception."""

from __future__ import annotations


class RemitError(Exception):
    """Base of every error Remit raises on purpose."""


class TransientError(RemitError):
    """A dependency is down or slow; the message is delivered again.

    `retry_after_s` is the least delay in seconds, or None for the usual back-off (design, bus section 3).
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """Keep the least delay beside the message."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentError(RemitError):
    """No retry can help; the message goes to the dead-letter stream."""


class CanonicalError(RemitError):
    """The JSON is ambiguous or outside I-JSON, so it has no canonical form (RFC 8785, RFC 7493)."""


class EnvelopeError(PermanentError):
    """An event may not be believed: bad signature, unknown kid, foreign type, wrong subject or broken chain.

    `code` is one of `oversize subject kid type signature schema chain version`; it never quotes the body.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep the closed code for counters and dead letters."""
        super().__init__(message)
        self.code = code


class BundleError(RemitError):
    """A registry or policy bundle is refused whole; the message names file, entry, what was found, what was expected."""


class ConfigurationError(RemitError):
    """A setting is missing or contradicts another; the message names it and the remedy."""


class StaleBundleError(TransientError):
    """No registry bundle was read within the staleness limit; nothing may be allowed (design, bus section 2)."""
