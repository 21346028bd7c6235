"""What people send to approval on `human.<command>`, and the closed set of answers they get back.

Each request carries the person's ID token, which approval verifies itself: the client's own credential
commands nothing. The token never appears in a repr, a log or a reply.
Source: design, dashboard section 2 (Commands); bus section 9.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import to_json

from remit.bundle import BundleContent
from remit.canonical import strict_loads
from remit.errors import CanonicalError, RemitError
from remit.events import Digest
from remit.remits import Human, RemitDocument, RemitTerms

SUBJECT_ROOT = "human"
"""First token of every command subject."""
REPLY_TIMEOUT_S = 3.0
"""No reply within this is *not known*: say so, repeat with the same idempotency key, never assume success."""
MAX_COMMAND_BYTES = 250_000
"""Just under the broker's `max_payload` of 256 KB (design, bus section 2)."""
MAX_ID_TOKEN = 8_192
"""Longest token a verifier looks at (design, standards section 2.5 rule 1)."""

ActionIdText = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Text = Annotated[str, Field(min_length=1, max_length=500)]


class CommandError(RemitError):
    """A command does not fit its contract; `field` names where, the message never quotes a value."""

    def __init__(self, field: str, message: str) -> None:
        """Keep the field beside the message."""
        super().__init__(message)
        self.field = field


class Command(BaseModel):
    """What every command carries."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: ClassVar[str]
    """Second token of the subject."""

    id_token: Annotated[SecretStr, Field(min_length=1, max_length=MAX_ID_TOKEN)]
    idempotency_key: str = Field(
        pattern=r"^[\x21-\x7e]{8,128}$",
        description="Repeat it to repeat the question; a new key is a new decision.",
    )

    @classmethod
    def subject(cls) -> str:
        """Return where this command is sent."""
        return f"{SUBJECT_ROOT}.{cls.name}"

    def to_wire(self) -> bytes:
        """Return the request body; the only place where the token is spelled out.

        Raises:
            CommandError: the body is larger than the broker takes.

        """
        body = self.model_dump(mode="json", exclude_none=True, exclude={"id_token"})
        wire = to_json(body | {"id_token": self.id_token.get_secret_value()})
        if len(wire) > MAX_COMMAND_BYTES:
            raise CommandError("", f"the command has {len(wire)} bytes, the bus takes {MAX_COMMAND_BYTES}")
        return wire


class GrantCommand(Command):
    """Delegate one task to one agent; the human is the person of the token."""

    name = "grant"
    terms: RemitTerms
    phase: Literal["preview"] | None = Field(default=None, description="`preview` has no effect and answers the same.")
    remit_digest: Digest | None = Field(
        default=None, description="Digest that a preview with this key returned; another result is `stale`."
    )


class ApproveCommand(Command):
    """Approve exactly the arguments that were shown, or vote for them when a quorum is asked."""

    name = "approve"
    action_id: ActionIdText
    args_digest: Digest
    version: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="`round` of the request on the card; a later round is `stale`; needed at T3 and T4."
    )
    shown_digest: Digest | None = Field(
        default=None, description="`shown_digest` of the approval request on the card; needed at T3 and T4."
    )
    narrowing: dict[str, JsonValue] | None = Field(
        default=None,
        description="Stricter JSON Schema over the arguments; joined to the grant, never in its place.",
    )


class NarrowCommand(ApproveCommand):
    """Approve with a stricter grant."""

    name = "narrow"

    @model_validator(mode="after")
    def _narrows(self) -> NarrowCommand:
        if self.narrowing is None:
            raise ValueError("narrow needs a narrowing; send approve to approve as asked")
        return self


class DenyCommand(Command):
    """Refuse an action, and block its like under this remit."""

    name = "deny"
    action_id: ActionIdText
    version: Annotated[int, Field(ge=1)] | None = None
    reason: Text | None = Field(default=None, description="Goes back to the agent as data.")


RevokeKind = Literal["action", "remit", "agent", "tool", "human", "global"]


class RevokeCommand(Command):
    """Stop one action, one remit, or everything behind a kill switch; `lift` releases a switch."""

    name = "revoke"
    kind: RevokeKind
    target: str = Field(
        min_length=1,
        max_length=800,
        description="Id; for agent its SPIFFE id, tool `tool.action` or `tool` (every action), human `<iss>|<sub>`, global `*`.",
    )
    reason: Text
    lift: bool = False

    @model_validator(mode="after")
    def _liftable(self) -> RevokeCommand:
        if self.lift and self.kind in {"action", "remit"}:
            raise ValueError(f"a revoked {self.kind} stays revoked; agent, tool, human and global can be lifted")
        if self.kind == "global" and self.target != "*":
            raise ValueError("the target of the global switch is *")
        return self


class ApplyCommand(Command):
    """Put a registry and policy bundle in force, whole or not at all."""

    name = "apply"
    content: BundleContent
    base_version: int = Field(ge=0, description="Bundle version this one was written against; 0 when there is none.")


class ResolveCommand(Command):
    """State what really became of an effect whose outcome is unknown."""

    name = "resolve"
    action_id: ActionIdText
    outcome: Literal["succeeded", "failed"]
    finding: Text = Field(description="How it was established; kept as evidence.")


COMMANDS: dict[str, type[Command]] = {
    command.name: command
    for command in (
        GrantCommand,
        ApproveCommand,
        NarrowCommand,
        DenyCommand,
        RevokeCommand,
        ApplyCommand,
        ResolveCommand,
    )
}
"""Command by name: the closed list that approval answers."""

ReplyStatus = Literal[
    "ok",
    "decided",
    "stale",
    "forbidden",
    "too_early",
    "invalid",
    "login_needed",
    "unavailable",
    "revoke_too_late",
]


class Reply(BaseModel):
    """The answer to a command; what else it carries than `status` and `detail` depends on the command."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    status: ReplyStatus
    detail: str = Field(default="", description="What was found, what was expected, what to do.")
    field: str | None = Field(default=None, description="invalid: dotted path of the offending field.")
    retry_after_ms: int | None = Field(default=None, description="too_early, unavailable: least wait.")
    decided_by: Human | None = Field(default=None, description="decided: by whom; absent when the clock or policy did.")
    decided_at: AwareDatetime | None = Field(default=None, description="decided: when.")
    decision: str | None = Field(
        default=None, description="decided: short type of the deciding event, such as `approved`."
    )
    remit: RemitDocument | None = Field(
        default=None, description="grant: what is, or with phase preview would be, granted."
    )
    remit_id: str | None = Field(default=None, description="grant, revoke remit.")
    remit_digest: Digest | None = Field(default=None, description="grant.")
    round: int | None = Field(default=None, description="approve: round now open, when more votes are needed.")
    votes: int | None = Field(default=None, description="approve: distinct votes counted so far.")
    quorum: int | None = Field(default=None, description="approve: votes needed.")
    bundle_version: int | None = Field(default=None, description="apply: version now in force.")
    policy_version: Digest | None = Field(default=None, description="apply: digest of the content now in force.")

    def to_wire(self) -> bytes:
        """Return the reply body."""
        return self.model_dump_json(exclude_none=True).encode()


def parse_command(name: str, body: bytes) -> Command:
    """Return the command of a request body.

    Raises:
        CommandError: no such command, not I-JSON, or a field that does not fit.

    """
    command = COMMANDS.get(name)
    if command is None:
        raise CommandError("", f"there is no command {name[:40]!r}; the commands are {', '.join(COMMANDS)}")
    try:
        strict_loads(body)  # pydantic keeps the last of duplicate keys, and a grant must not have two readings
        return command.model_validate_json(body)
    except CanonicalError as error:
        raise CommandError("", str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CommandError(where, f"{where or name}: {first['msg']}") from None


def parse_reply(body: bytes) -> Reply:
    """Return a reply, or `unavailable` when it cannot be read: an unreadable answer is not a yes."""
    try:
        return Reply.model_validate_json(body)
    except ValidationError:
        return Reply(
            status="unavailable",
            detail="the reply of approval could not be read; ask again with the same key",
        )
