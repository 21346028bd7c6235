"""A "no" as a value: one reason of the closed list, and what to change, without argument values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remit.reasons import Reason


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a call may not be made."""

    reason: Reason
    detail: str
