"""What can go wrong on the agent's side. A refused proposal is a `Refusal`, never one of these."""

from __future__ import annotations

from remit.errors import ConfigurationError, RemitError, TransientError


class NotConnectedError(TransientError):
    """No server could be reached; the message names the servers and the remedy."""


class UndeliveredError(TransientError):
    """It is not known whether the proposal arrived; propose again with the same `idempotency_key`, which is safe."""

    def __init__(self, message: str, *, idempotency_key: str) -> None:
        """Keep the key beside the message."""
        super().__init__(message)
        self.idempotency_key = idempotency_key


class AgentKeyError(ConfigurationError):
    """The seed is no nkey seed, or the broker does not know it."""


class NotPermittedError(ConfigurationError):
    """The broker refuses a subject to this key; the message names the subject and the remedy."""


class HandleError(RemitError):
    """The text is no handle of this agent."""
