"""What every connector offers: everything that may fail comes first, then one request, then one of three outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from services.executor.decide import Order, Refuse
    from services.executor.results import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a tool lives: the name that certificates and `Host` speak of, and the one checked address behind it."""

    scheme: str
    host: str
    port: int
    ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A call that can be made at once; only `prepare` makes one. The credential never shows in logs."""

    address: Address | None = None
    credential: str | None = field(default=None, repr=False)


class Connector(Protocol):
    """One kind of tool."""

    async def prepare(self, order: Order) -> Ready | Refuse:
        """Do everything that can fail without an effect: egress check, credential, name, connection, drift.

        Nothing of the call itself is sent. An exception is a bug; "no" is a `Refuse`.
        """
        ...

    async def call(self, order: Order, ready: Ready) -> Answer:
        """Make the call once and say what is known: succeeded, failed without an effect, or unknown.

        Never raises for what a tool or a network can do.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
