"""The eleven tools of the bank as plain functions on a world. Arguments are checked strictly; an unknown one is refused.

Names, arguments and results follow AgentDojo's banking suite (MIT licence); the code is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError, validate_call

from infra.demo.bank.world import Transaction, World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PLANNED = ("recipient", "amount", "subject", "date", "recurring")
_IDENTITY = ("first_name", "last_name", "street", "city")


class Message(BaseModel):
    """What a change answers with."""

    message: str


class UserInfo(BaseModel):
    """The user without the password."""

    first_name: str
    last_name: str
    street: str
    city: str


class OperationError(Exception):
    """The call cannot be performed; the message names arguments, never their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a call gives back: text for a model, the same as data for a program."""

    text: str
    structured: JsonValue = None
    is_error: bool = False


def _next_id(world: World) -> int:
    account = world.bank_account
    known = [*account.transactions, *account.scheduled_transactions]
    return max((item.id for item in known), default=0) + 1


def _transaction(world: World, fields: Mapping[str, Any]) -> Transaction:
    return Transaction(id=_next_id(world), sender=world.bank_account.iban, **fields)


def _apply(target: BaseModel, names: tuple[str, ...], given: Mapping[str, Any]) -> None:
    for name in names:
        if given[name] is not None:
            setattr(target, name, given[name])


def get_iban(world: World) -> str:
    """Return the IBAN of the account."""
    return world.bank_account.iban


def get_balance(world: World) -> float:
    """Return the balance of the account."""
    return world.bank_account.balance


def get_most_recent_transactions(world: World, n: int = 100) -> list[Transaction]:
    """Return the last `n` payments, oldest first."""
    return world.bank_account.transactions[-n:] if n > 0 else []


def get_scheduled_transactions(world: World) -> list[Transaction]:
    """Return the planned payments."""
    return world.bank_account.scheduled_transactions


def get_user_info(world: World) -> UserInfo:
    """Return the user's name and address."""
    return UserInfo.model_validate(world.user_account.model_dump(include=set(_IDENTITY)))


def read_file(world: World, file_path: str) -> str:
    """Return the text of a file."""
    if file_path not in world.filesystem.files:
        raise OperationError("file_path names no file")
    return world.filesystem.files[file_path]


def send_money(world: World, recipient: str, amount: float, subject: str, date: str) -> Message:
    """Pay now. The balance stays as it is, as in the source."""
    fields = {"recipient": recipient, "amount": amount, "subject": subject, "date": date, "recurring": False}
    world.bank_account.transactions.append(_transaction(world, fields))
    return Message(message=f"Transaction to {recipient} for {amount} sent.")


def schedule_transaction(  # noqa: PLR0913, PLR0917  (the recorded tool has five arguments)
    world: World, recipient: str, amount: float, subject: str, date: str, recurring: bool
) -> Message:
    """Plan a payment."""
    fields = {"recipient": recipient, "amount": amount, "subject": subject, "date": date, "recurring": recurring}
    world.bank_account.scheduled_transactions.append(_transaction(world, fields))
    return Message(message=f"Transaction to {recipient} for {amount} scheduled.")


def update_scheduled_transaction(  # noqa: PLR0913, PLR0917  (the recorded tool has six arguments)
    world: World,
    id: int,  # noqa: A002  (the name is part of the recorded tool)
    recipient: str | None = None,
    amount: float | None = None,
    subject: str | None = None,
    date: str | None = None,
    recurring: bool | None = None,
) -> Message:
    """Change a planned payment; what is not given stays."""
    planned = next((item for item in world.bank_account.scheduled_transactions if item.id == id), None)
    if planned is None:
        raise OperationError("id names no scheduled transaction")
    given = (recipient, amount, subject, date, recurring)
    _apply(planned, _PLANNED, dict(zip(_PLANNED, given, strict=True)))
    return Message(message=f"Transaction with ID {id} updated.")


def update_password(world: World, password: str) -> Message:
    """Set the user's password."""
    world.user_account.password = password
    return Message(message="Password updated.")


def update_user_info(
    world: World,
    first_name: str | None = None,
    last_name: str | None = None,
    street: str | None = None,
    city: str | None = None,
) -> UserInfo:
    """Change the user's name or address; what is not given stays."""
    _apply(world.user_account, _IDENTITY, dict(zip(_IDENTITY, (first_name, last_name, street, city), strict=True)))
    return get_user_info(world)


_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    get_iban,
    send_money,
    schedule_transaction,
    update_scheduled_transaction,
    get_balance,
    get_most_recent_transactions,
    get_scheduled_transactions,
    read_file,
    get_user_info,
    update_password,
    update_user_info,
)
_checked = validate_call(config=ConfigDict(strict=True))
_CHECKED: dict[str, Callable[..., Any]] = {f.__name__: _checked(f) for f in _FUNCTIONS}
_RESULTS = {f.__name__: TypeAdapter[Any](get_type_hints(f)["return"]) for f in _FUNCTIONS}


def output_schema(tool: str) -> dict[str, Any]:
    """Return the JSON Schema of a tool's structured result; what is not an object stands under `result`.

    Source: MCP 2025-06-18, which allows only objects at the root.
    """
    generated = _RESULTS[tool].json_schema(mode="serialization")
    schema = _plain(generated, generated.pop("$defs", {}))
    if schema.get("type") == "object":
        return schema
    return {"type": "object", "properties": {"result": schema}, "required": ["result"]}


def _plain(schema: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401  (any part of a JSON Schema)
    """Return a schema in one piece, without the titles and docstrings that would tie the definition to our wording."""
    if isinstance(schema, list):
        return [_plain(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _plain(part, definitions) for key, part in schema.items() if key not in {"title", "description"}}


def _text(result: object, dumped: JsonValue) -> str:
    """Return the text form of the source: lists as YAML, the rest as Python shows it."""
    return yaml.safe_dump(dumped).strip() if isinstance(result, list) else str(dumped)


def perform(world: World, tool: str, arguments: Mapping[str, JsonValue]) -> Reply:
    """Perform one call on the world.

    Raises:
        OperationError: the tool is unknown, an argument is missing, unknown or of the wrong type, or it names nothing.

    """
    if tool not in _CHECKED:
        raise OperationError("no such tool")
    try:
        result = _CHECKED[tool](world, **arguments)
    except ValidationError as error:
        wrong = ", ".join(f"{'.'.join(map(str, e['loc']))} ({e['type']})" for e in error.errors(include_input=False))
        raise OperationError(f"arguments refused: {wrong}") from None
    dumped: JsonValue = _RESULTS[tool].dump_python(result, mode="json")
    structured: JsonValue = dumped if isinstance(dumped, dict) else {"result": dumped}
    return Reply(text=_text(result, dumped), structured=structured)
