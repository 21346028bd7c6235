"""The agent SDK; needs the base install only. Import the names from `remit`."""

from __future__ import annotations

from remit.client.agent import Agent
from remit.client.errors import AgentKeyError, HandleError, NotConnectedError, NotPermittedError, UndeliveredError
from remit.client.outcomes import Pending, Refusal, Result
from remit.client.settings import Identity

__all__ = [
    "Agent",
    "AgentKeyError",
    "HandleError",
    "Identity",
    "NotConnectedError",
    "NotPermittedError",
    "Pending",
    "Refusal",
    "Result",
    "UndeliveredError",
]
