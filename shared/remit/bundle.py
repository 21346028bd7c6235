"""Registry and policies as one signed, versioned bundle: what exists, who may ask, and by which rules.

The files of a registry directory (`tools/*.yaml`, `agents.yaml`, `policies/*.cedar`) become one `BundleContent`; approval signs
the manifest. A bundle is accepted whole or refused whole. Source: design, section 5; bus section 2 (REGISTRY).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from remit.canonical import digest

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
Risk = Literal["T1", "T2", "T3", "T4"]
Effect = Literal["read", "write", "destructive"]


FINAL_STATUSES = (400, 401, 403, 404, 405, 406, 410, 411, 412, 413, 414, 415, 422)
"""Client errors that RFC 9110 section 15.5 describes as a request not acted upon, whoever answers it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HttpRequestTemplate(_Frozen):
    """How an HTTP action becomes a request; arguments named in the path are taken out of the body or query."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str = Field(
        pattern=r"^/", description="Path template, `{argument}` per path segment, percent-encoded on use."
    )


class ActionEntry(_Frozen):
    """One operation of a tool, classified by the operator; hints from a live server never lower this."""

    description: str = Field(max_length=4000)
    summary: str | None = Field(
        default=None, description="Template of the approval card's sentence, `{argument}` placeholders."
    )
    arguments: dict[str, JsonValue] = Field(
        description="JSON Schema 2020-12, type object, additionalProperties false; properties may carry the booleans "
        "x-remit-sink (names a destination), x-remit-sensitive (redacted on display), x-remit-resource (names the resource)."
    )
    result: dict[str, JsonValue] | None = Field(default=None, description="JSON Schema 2020-12 of the result.")
    risk: Risk
    effect: Effect
    reversibility: Literal["reversible", "compensable", "irreversible"]
    idempotency: Literal["key", "natural", "queryable", "none"] = Field(
        description="`key`: the tool performs one Idempotency-Key once; `natural`: a second identical call changes nothing; "
        "`queryable`: treated as `none` until a query action can be named; `none`: never repeated, doubt goes to a person."
    )
    errors_are_final: bool = Field(
        default=False,
        description="A tool error, or a 4xx other than the documented ones, proves that nothing happened. Without it such an "
        "answer to a write leaves an unknown outcome; reads need no proof.",
    )
    final_statuses: list[Annotated[int, Field(ge=400, le=499)]] = Field(
        default_factory=lambda: list(FINAL_STATUSES),
        description="Documented HTTP statuses by which the tool refuses before any effect (design, bus section 7).",
    )
    timeout_s: float = Field(default=10.0, gt=0, le=300)
    result_max_bytes: int = Field(default=16_384, ge=1, le=24_576)
    redact: list[str] = Field(default_factory=list[str], description="JSON pointers removed from results.")
    http: HttpRequestTemplate | None = None
    upstream_name: str | None = Field(
        default=None, description="Name of the MCP tool, when it differs from the action."
    )
    upstream_digest: str | None = Field(
        default=None, description="Pinned digest of the live MCP tool definition; drift quarantines the action."
    )


class ToolEntry(_Frozen):
    """A registered target."""

    tool: Slug
    resource: str = Field(
        pattern=r"^https?://[^#\s]+$", description="Absolute resource identifier (RFC 8707 section 2)."
    )
    connector: Literal["mcp", "http", "noop"]
    endpoint: str | None = Field(default=None, description="Where the executor reaches it; absent for noop.")
    environment: str = Field(min_length=1, max_length=63)
    owner: str
    credential: Slug | None = Field(default=None, description="Name the executor's credential provider resolves.")
    egress: list[str] = Field(default_factory=list[str], description="Host or host:port the executor may reach for it.")
    actions: dict[Name, ActionEntry]


class AgentEntry(_Frozen):
    """A registered agent and its public key."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    id: str = Field(pattern=r"^spiffe://")
    client_id: str
    public_key: str = Field(pattern=r"^U[A-Z2-7]{55}$", description="NATS user nkey; signs proposals and connects.")
    owner: str
    runtime: str
    model_family: str
    model_version: str
    config_digest: str
    proposals_per_minute: int = Field(default=600, ge=1)
    max_open_actions: int = Field(default=1000, ge=1)


class BundleContent(_Frozen):
    """Everything decisions depend on; its digest is the policy version."""

    tools: dict[Slug, ToolEntry]
    agents: dict[str, AgentEntry]
    policies: dict[str, str] = Field(description="File name to Cedar text.")

    def digest(self) -> str:
        """Return the policy version: the digest of the whole content."""
        return digest(self.model_dump(mode="json", exclude_none=True))


class Manifest(_Frozen):
    """What is stored under `$KV.REGISTRY.bundle`, beside a signature by approval over its bytes."""

    version: int = Field(ge=1, description="Rises with every apply; a reader refuses a lower one.")
    issued_at: AwareDatetime
    content_digest: str
    parts: list[str] = Field(description="Hex SHA-256 of each part under `$KV.REGISTRY.part.<sha256>`, in order.")
    applied_by: str


def schema_digest(tool: ToolEntry, action: str) -> str:
    """Return the pin of one action: what the model reads and what the wire will carry.

    Source: design, standards section 6 (`tool_schema_digest`).
    """
    entry = tool.actions[action]
    return digest(
        {
            "connector": tool.connector,
            "endpoint": tool.endpoint,
            "name": entry.upstream_name or action,
            "description": entry.description,
            "arguments": entry.arguments,
            "result": entry.result,
            "http": entry.http.model_dump(mode="json") if entry.http else None,
            "upstream": entry.upstream_digest,
        }
    )
