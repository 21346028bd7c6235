"""A small bank behind intake's door: one registered agent with a real key, its proposals, and handlers over plain memory."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from remit.bundle import BundleContent
from remit.canonical import b64url, canonical
from remit.envelope import seal, source_of
from remit.evaluation import CompiledBundle
from remit.events import ActionProposed, Proposed
from remit.fold import ActionState, step
from remit.ids import event_id
from remit.proposal import SIGNATURE_HEADER, Notice, signed_bytes
from remit.runtime.delivery import Inbound
from remit.runtime.ledger import Superseded
from services.intake.catalogue import Catalogue
from services.intake.decide import Submission
from services.intake.handlers import IntakeHandlers
from tests.support.factories import ARGUMENTS, NOW, PROPOSAL, SIGNERS

if TYPE_CHECKING:
    from remit.runtime.ledger import Draft

KEY = SigningKey(b"\x07" * 32)
FOREIGN_KEY = SigningKey(b"\x08" * 32)
SECRET = "DE00SECRET0IBAN"
"""An argument value that no message may repeat."""
SEND_MONEY: dict[str, Any] = {
    "description": "Send money.",
    "arguments": {
        "type": "object",
        "additionalProperties": False,
        "required": ["recipient", "amount"],
        "properties": {
            "recipient": {"type": "string", "pattern": "^UK", "x-remit-sink": True, "x-remit-resource": True},
            "amount": {"type": "number", "minimum": 0},
            "subject": {"type": "string"},
            "date": {"type": "string"},
        },
    },
    "risk": "T3",
    "effect": "write",
    "reversibility": "irreversible",
    "idempotency": "key",
}
TOOL: dict[str, Any] = {
    "tool": "bank",
    "resource": "https://remit.example/tools/bank",
    "connector": "noop",
    "environment": "demo",
    "owner": "payments team",
    "actions": {"send_money": SEND_MONEY, "read_file": {**SEND_MONEY, "effect": "read"}},
}


def public_nkey(key: SigningKey) -> str:
    raw = bytes([20 << 3]) + bytes(key.verify_key)
    return base64.b32encode(raw + struct.pack("<H", binascii.crc_hqx(raw, 0))).decode().rstrip("=")


def agent(name: str = "bookkeeper", key: SigningKey = KEY, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "id": f"spiffe://acme.example/agent/{name}",
        "client_id": f"https://agents.example/{name}",
        "public_key": public_nkey(key),
        "owner": "acme",
        "runtime": "python-3.11",
        "model_family": "claude",
        "model_version": "5",
        "config_digest": "sha-256:config",
        **changes,
    }


def catalogue(tools: dict[str, Any] | None = None, **changes: Any) -> Catalogue:
    content = {
        "tools": {"bank": TOOL} if tools is None else tools,
        "agents": {"bookkeeper": agent(**changes)},
        "policies": {},
    }
    return Catalogue.of(CompiledBundle.compile(BundleContent.model_validate(content), version=3))


def body(**changes: Any) -> bytes:
    return canonical({**PROPOSAL, **changes})


def arguments(**changes: Any) -> dict[str, Any]:
    return {**ARGUMENTS, **changes}


def signature(raw: bytes, *, name: str = "bookkeeper", key: SigningKey = KEY) -> str:
    return b64url(key.sign(signed_bytes(name, raw)).signature)


def submission(raw: bytes | None = None, **changes: Any) -> Submission:
    raw = body() if raw is None else raw
    return replace(Submission(agent="bookkeeper", body=raw, signature=signature(raw)), **changes)


def inbound(raw: bytes | None = None, *, name: str = "bookkeeper", **changes: Any) -> Inbound:
    raw = body() if raw is None else raw
    headers = changes.pop("headers", {SIGNATURE_HEADER: signature(raw, name=name)})
    return replace(Inbound(subject=f"in.propose.{name}", body=raw, headers=headers, seq=7, stream="INTAKE"), **changes)


@dataclass
class Door:
    """Handlers over a ledger in memory that keeps the real one's promises: compare-and-set, first stored wins."""

    catalogue: Catalogue = field(default_factory=catalogue)
    states: dict[str, ActionState] = field(default_factory=dict[str, ActionState])
    told: list[tuple[str, Notice]] = field(default_factory=list[tuple[str, Notice]])
    letters: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    alarms: list[str] = field(default_factory=list[str])
    traces: list[str | None] = field(default_factory=list[str | None])
    now: float = 0.0

    def handlers(self) -> IntakeHandlers:
        return IntakeHandlers(
            tenant="default",
            catalogue=lambda: self.catalogue,
            read=self.read,
            append=self.append,
            publish=self.publish,
            dead_letter=self.dead_letter,
            alarm=self.alarms.append,
            monotonic=lambda: self.now,
        )

    async def read(self, action_id: str) -> ActionState:
        return self.states.get(action_id, ActionState(action_id=action_id))

    async def append(self, state: ActionState, draft: Draft) -> ActionState:
        truth = await self.read(state.action_id)
        name = event_id(state.action_id, f"action.{draft.event.short}", draft.discriminator)
        if any(r.event.id == name for r in truth.chain):
            return truth
        if truth.last_seq != state.last_seq:
            raise Superseded(truth)
        self.traces.append(draft.traceparent)
        assert isinstance(draft.data, Proposed)
        built = ActionProposed(
            id=name,
            source=source_of("intake"),
            subject=state.action_id,
            time=NOW,
            n=1,
            kid=SIGNERS["intake"].kid,
            dataschema="https://remit.example/schemas/action.proposed/1.0.0",
            correlationid=state.action_id,
            data=draft.data,
        )
        recorded = seal(built, subject=f"action.{state.action_id}.proposed", signer=SIGNERS["intake"])
        grown, finding = step(truth, recorded, truth.last_seq + 1)
        assert finding is None
        self.states[state.action_id] = grown
        return grown

    async def publish(self, subject: str, wire: bytes) -> None:
        self.told.append((subject, Notice.model_validate_json(wire)))

    async def dead_letter(self, inbound: Inbound, *, code: str, detail: str, keep: int) -> None:
        assert keep <= 1024
        assert inbound.subject.startswith("in.propose.")
        self.letters.append((code, detail))
