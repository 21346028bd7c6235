"""Remit: task-shaped authority for AI agents. These names are the agent SDK; everything else is for services and tools."""

from __future__ import annotations

from remit.client import (
    Agent,
    AgentKeyError,
    HandleError,
    Identity,
    NotConnectedError,
    NotPermittedError,
    Pending,
    Refusal,
    Result,
    UndeliveredError,
)
from remit.errors import RemitError
from remit.reasons import Outcome, Reason

__all__ = [
    "Agent",
    "AgentKeyError",
    "HandleError",
    "Identity",
    "NotConnectedError",
    "NotPermittedError",
    "Outcome",
    "Pending",
    "Reason",
    "Refusal",
    "RemitError",
    "Result",
    "UndeliveredError",
]
