"""Signed wire form of an event: Ed25519 over subject, NUL, raw body, so that an event is valid on its own subject only.

The predecessors of an action travel beside it in the header `Remit-Chain`, each as its own signed bytes; the `prev` digest of
every event binds them. Source: design, bus section 5.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nacl.exceptions import BadSignatureError
from pydantic import ValidationError

from remit.canonical import b64url, b64url_decode, digest_bytes
from remit.errors import CanonicalError, EnvelopeError
from remit.events import BY_SUBJECT, Event

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from nacl.signing import SigningKey, VerifyKey

MAX_EVENT_BYTES = 65_536
"""Stream limit of ACTIONS and REMITS, headers included (design, bus section 2)."""
KID_HEADER = "Remit-Kid"
SIGNATURE_HEADER = "Remit-Sig"
CHAIN_HEADER = "Remit-Chain"
CONTENT_TYPE = "application/cloudevents+json"
SIGNATURE_BYTES = 64
NOT_UNDERSTOOD = frozenset({"kid", "version"})
"""Codes of an event that another replica, or this one after an upgrade or a change of the key file, may believe."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key of the environment's key file: which service holds it and which types it may emit."""

    kid: str
    service: str
    types: frozenset[str]
    key: VerifyKey


@dataclass(frozen=True, slots=True)
class Signer:
    """A service's signing key with its kid, and the secret that makes its `Nats-Msg-Id` unguessable."""

    kid: str
    service: str
    key: SigningKey
    message_id_secret: bytes

    def message_id(self, event_id: str) -> str:
        """Return HMAC(secret, event id): nobody else can occupy a future id (design, bus section 5)."""
        return hmac.new(self.message_id_secret, event_id.encode(), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Signed:
    """One event on the wire."""

    subject: str
    body: bytes
    kid: str
    signature: bytes

    @property
    def digest(self) -> str:
        """Digest of the raw body, the next event's `prev`."""
        return digest_bytes(self.body)

    def headers(self) -> dict[str, str]:
        """Return the headers every event carries."""
        return {
            KID_HEADER: self.kid,
            SIGNATURE_HEADER: b64url(self.signature),
            "Content-Type": CONTENT_TYPE,
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """A verified event together with the bytes that prove it.

    `seq` and `stored_at` (the broker's own time) are there when the stored message was seen: consumed, or read by the leader.
    """

    event: Event
    signed: Signed
    seq: int | None = None
    stored_at: datetime | None = None


def message(subject: str, body: bytes) -> bytes:
    """Return the bytes an event signature covers."""
    return subject.encode() + b"\x00" + body


def seal(event: Event, *, subject: str, signer: Signer) -> Recorded:
    """Serialize and sign an event."""
    body = event.model_dump_json(exclude_none=True).encode()
    signature = signer.key.sign(message(subject, body)).signature
    return Recorded(event=event, signed=Signed(subject=subject, body=body, kid=signer.kid, signature=signature))


def signed_from(subject: str, body: bytes, headers: Mapping[str, str] | None) -> Signed:
    """Pick the signature out of message headers.

    Raises:
        EnvelopeError: `signature` when a header is absent or misspelt.

    """
    kid = (headers or {}).get(KID_HEADER)
    signature = (headers or {}).get(SIGNATURE_HEADER)
    if not kid or not signature:
        raise EnvelopeError("signature", f"event on {subject} carries no {KID_HEADER} or no {SIGNATURE_HEADER} header")
    try:
        return Signed(subject=subject, body=body, kid=kid, signature=b64url_decode(signature))
    except CanonicalError:
        raise EnvelopeError("signature", f"event on {subject} has a misspelt {SIGNATURE_HEADER} header") from None


def event_class(subject: str) -> type[Event]:
    """Return the event class that belongs on a subject.

    Raises:
        EnvelopeError: `subject` when it is not `action.<id>.<type>` or `remit.<id>.<type>` of the closed list.

    """
    tokens = subject.split(".")
    found = BY_SUBJECT.get((tokens[0], tokens[2])) if len(tokens) == 3 else None
    if found is None:
        raise EnvelopeError("subject", f"{subject} is no subject of the event contract")
    return found


def check_signature(signed: Signed, trust: Mapping[str, TrustedKey], event: type[Event]) -> None:
    """Verify, cheapest first: size, kid, may this kid emit this type, signature.

    Raises:
        EnvelopeError: `oversize`, `kid`, `type` or `signature`.

    """
    if len(signed.body) > MAX_EVENT_BYTES:
        raise EnvelopeError(
            "oversize", f"event on {signed.subject} has {len(signed.body)} bytes, limit {MAX_EVENT_BYTES}"
        )
    key = trust.get(signed.kid)
    if key is None:
        raise EnvelopeError("kid", f"event on {signed.subject} names a kid that is not in the key file")
    if key.service not in event.writers or event_type_key(event) not in key.types:
        raise EnvelopeError("type", f"kid {key.kid} of {key.service} may not emit {event_type_key(event)}")
    if len(signed.signature) != SIGNATURE_BYTES:
        raise EnvelopeError("signature", f"event on {signed.subject} has a signature of the wrong length")
    try:
        key.key.verify(message(signed.subject, signed.body), signed.signature)
    except BadSignatureError:
        raise EnvelopeError("signature", f"event on {signed.subject} was not signed by kid {key.kid}") from None


def event_type_key(event: type[Event]) -> str:
    """Return the type name as the key file lists it: `action.evaluated`, `remit.granted`."""
    return f"{'action' if event.stream == 'ACTIONS' else 'remit'}.{event.short}"


def parse(signed: Signed, event: type[Event]) -> Event:
    """Validate the body once, from bytes, and hold it against its subject and kid.

    Raises:
        EnvelopeError: `version` for a newer type version, `schema` for anything else that does not fit, `subject` when the
            body names another subject, `type` when it names another kid.

    """
    try:
        parsed = event.model_validate_json(signed.body)
    except ValidationError as error:
        raise _schema_error(signed, error) from None
    if parsed.subject != signed.subject.split(".")[1]:
        raise EnvelopeError("subject", f"body on {signed.subject} names another subject")
    if parsed.kid != signed.kid:
        raise EnvelopeError("type", f"body on {signed.subject} names another kid than its header")
    return parsed


def _schema_error(signed: Signed, error: ValidationError) -> EnvelopeError:
    details: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    # `io.remit.action.<type>.v2` at `type` is a newer contract, not junk: an upgraded replica can take it.
    newer = where == "type" and any(b'.v%d"' % v in signed.body[:600] for v in range(2, 10))
    code = "version" if newer else "schema"
    return EnvelopeError(code, f"event on {signed.subject}: {where}: {first['msg']}")


def verify(
    signed: Signed, trust: Mapping[str, TrustedKey], *, seq: int | None = None, stored_at: datetime | None = None
) -> Recorded:
    """Return the event only if its signature, writer, subject and schema hold.

    Raises:
        EnvelopeError: with the closed code of the first check that failed.

    """
    event = event_class(signed.subject)
    check_signature(signed, trust, event)
    parsed = parse(signed, event)
    if parsed.source != source_of(trust[signed.kid].service):
        raise EnvelopeError("type", f"body on {signed.subject} names another source than the owner of its kid")
    return Recorded(event=parsed, signed=signed, seq=seq, stored_at=stored_at)


def source_of(service: str) -> str:
    """Return the CloudEvents `source` of a service."""
    return f"/remit/{service}"


def pack_chain(predecessors: tuple[Recorded, ...]) -> str:
    """Return the `Remit-Chain` header: oldest first, `type:kid:signature:body` joined by commas, all base64url."""
    return ",".join(
        f"{r.event.short}:{r.signed.kid}:{b64url(r.signed.signature)}:{b64url(r.signed.body)}" for r in predecessors
    )


def unpack_chain(header: str, *, root: str, subject_id: str) -> tuple[Signed, ...]:
    """Return the predecessors as claimed; nothing is believed before `verify` and the `prev` digests agree.

    Raises:
        EnvelopeError: `chain` when the header is misspelt.

    """
    found: list[Signed] = []
    for part in header.split(",") if header else ():
        try:
            short, kid, signature, body = part.split(":")
            raw = Signed(
                subject=f"{root}.{subject_id}.{short}",
                body=b64url_decode(body),
                kid=kid,
                signature=b64url_decode(signature),
            )
        except (ValueError, CanonicalError):
            raise EnvelopeError("chain", f"{CHAIN_HEADER} of {subject_id} is misspelt") from None
        found.append(raw)
    return tuple(found)
