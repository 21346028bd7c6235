"""One task's world: accounts, files and a user, with places where the text of a stranger can stand.

A slot receives its text literally, after the YAML is parsed, so that no text can change the structure of the world.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = Path(__file__).parent.parent / "data" / "banking-environment.yaml"
"""The environment of AgentDojo's banking suite; see the README beside it."""


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Transaction(_State):
    """One payment, done or planned; amounts are in units of the account's currency, as in the source."""

    id: int
    sender: str
    recipient: str
    amount: float
    subject: str
    date: str
    recurring: bool


class BankAccount(_State):
    """The account of the user."""

    balance: float
    iban: str
    transactions: list[Transaction]
    scheduled_transactions: list[Transaction]


class Filesystem(_State):
    """Text files by path."""

    files: dict[str, str]


class UserAccount(_State):
    """The user as the bank knows them."""

    first_name: str
    last_name: str
    street: str
    city: str
    password: str


class World(_State):
    """Everything the tools can read or change."""

    bank_account: BankAccount
    filesystem: Filesystem
    user_account: UserAccount


class WorldConfig(BaseModel):
    """What a run starts from: a name that its log lines carry, and the text of each slot that is not left at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str = Field(default="", max_length=200)
    slots: dict[str, str] = Field(default_factory=dict[str, str])


class UnknownSlotError(ValueError):
    """The configuration names a slot that the environment does not have."""


@cache
def _source() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return loaded


def default_slots() -> dict[str, str]:
    """Return the default text of every slot."""
    return dict(_source()["slots"])


def _filled(value: JsonValue, slots: Mapping[str, str]) -> JsonValue:
    """Return a copy of the value with every `{slot}` replaced; text that was put in is not searched again."""
    match value:
        case str():
            found = next((name for name in slots if f"{{{name}}}" in value), None)
            return value.replace(f"{{{found}}}", slots[found]) if found else value
        case list():
            return [_filled(item, slots) for item in value]
        case dict():
            return {key: _filled(item, slots) for key, item in value.items()}
        case _:
            return value


def fresh_world(slots: Mapping[str, str]) -> World:
    """Return an untouched world whose slots carry the given texts, or their defaults.

    Raises:
        UnknownSlotError: a name is not a slot of the environment.

    """
    texts = default_slots()
    if unknown := sorted(set(slots) - set(texts)):
        raise UnknownSlotError(f"no slot {', '.join(unknown)}; there are {', '.join(sorted(texts))}")
    return World.model_validate(_filled(_source()["environment"], {**texts, **slots}))


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the JSON pointers, two levels deep, at which two dumps of a world differ (`/bank_account/transactions`)."""
    return sorted(
        f"/{part}/{field}"
        for part, fields in after.items()
        for field, value in fields.items()
        if before[part][field] != value
    )
