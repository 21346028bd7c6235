"""The hash chain over a stream, defined once: what the projector writes and what `remit audit verify` recomputes.

    record_digest = SHA-256(subject NUL kid NUL signature SHA-256(body) time)  kid and signature empty when absent
    chain_hash    = SHA-256(previous chain_hash, sequence as 8 bytes big endian, record_digest)
    genesis       = SHA-256("remit.ledger.v1:" stream), the predecessor of sequence 1

`time` is when the broker stored the message, in microseconds since 1970 as 8 signed bytes, big endian:
deadlines are held against it.
Every stored message is a link, believed or not, so that evidence of an attack cannot be removed either.
Source: design, bus section 8 (tamper evidence).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nacl.exceptions import BadSignatureError

from remit.canonical import b64url, b64url_decode, canonical, strict_loads
from remit.envelope import KID_HEADER, SIGNATURE_HEADER, Recorded, Signed, verify
from remit.errors import CanonicalError, EnvelopeError
from remit.fold import ActionState, RemitState, fold_remit, junk, step
from remit.ids import ACTION_ID, REMIT_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nacl.signing import SigningKey, VerifyKey

    from remit.envelope import TrustedKey

HASH_BYTES = 32
VALID = "valid"
"""`verify_status` of a folded event; every other value says why it was kept as evidence only."""
MAX_KID = 200
MAX_EVENT_ID = 64
"""A uuid has 36 characters; anything longer is no id of ours, and would not fit an index."""
CHECKPOINT_DOMAIN = b"remit.checkpoint.v1\x00"
"""Prefix of what a checkpoint signature covers, so that no other signed bytes can pass for a checkpoint."""


_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


def genesis(stream: str) -> bytes:
    """Return the predecessor of a stream's first record."""
    return hashlib.sha256(b"remit.ledger.v1:" + stream.encode()).digest()


def record_digest(subject: str, kid: str | None, signature: bytes | None, body_sha256: bytes, at: datetime) -> bytes:
    """Return the digest of one stored message; what follows the signature has a fixed length, so no two share the input."""
    head = subject.encode() + b"\x00" + (kid or "").encode() + b"\x00" + (signature or b"")
    stored_us = (at - _EPOCH) // _MICROSECOND
    return hashlib.sha256(head + body_sha256 + stored_us.to_bytes(8, "big", signed=True)).digest()


def link(previous: bytes, seq: int, record: bytes) -> bytes:
    """Return the chain hash of one record."""
    return hashlib.sha256(previous + seq.to_bytes(8, "big") + record).digest()


def spelled(raw: bytes) -> str:
    """Return a hash as events and checkpoints spell it."""
    return "sha-256:" + b64url(raw)


def merkle_root(records: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 section 2.1 tree head over record digests; of none, SHA-256 of nothing."""
    if not records:
        return hashlib.sha256(b"").digest()
    level = [hashlib.sha256(b"\x00" + record).digest() for record in records]
    # Pairing neighbours and carrying an odd one up builds the same tree as RFC 6962's split at the largest power of two.
    while len(level) > 1:
        paired = [hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One stored message, believed or not; `kid` and `signature` are None when its headers carry none that is readable.

    `at` is when the broker stored it, cut to microseconds.
    """

    seq: int
    subject: str
    body: bytes
    kid: str | None
    signature: bytes | None
    at: datetime

    @property
    def record(self) -> bytes:
        """Its digest as a link of the chain."""
        return record_digest(self.subject, self.kid, self.signature, hashlib.sha256(self.body).digest(), self.at)


def evidence_from(place: tuple[int, datetime], subject: str, body: bytes, headers: Mapping[str, str]) -> Evidence:
    """Take a stored message as the ledger keeps it; Postgres text holds no NUL, so neither may what is chained.

    `place` is its sequence, and when the broker stored it.
    """
    kid, signature = headers.get(KID_HEADER), headers.get(SIGNATURE_HEADER)
    return Evidence(
        seq=place[0],
        at=place[1],
        subject=subject.replace("\x00", "\ufffd"),
        body=body,
        kid=kid if kid and len(kid) <= MAX_KID and "\x00" not in kid else None,
        signature=_decoded(signature),
    )


def _decoded(signature: str | None) -> bytes | None:
    try:
        return b64url_decode(signature) if signature else None
    except (CanonicalError, UnicodeEncodeError):
        return None


def believe(evidence: Evidence, trust: Mapping[str, TrustedKey]) -> Recorded:
    """Verify one stored event, and that its ids are ours: they become keys of tables.

    Raises:
        EnvelopeError: with the closed code that becomes its `verify_status`.

    """
    if evidence.kid is None or evidence.signature is None:
        raise EnvelopeError("signature", f"message on {evidence.subject} is not signed")
    signed = Signed(evidence.subject, evidence.body, evidence.kid, evidence.signature)
    recorded = verify(signed, trust, seq=evidence.seq, stored_at=evidence.at)
    wanted = ACTION_ID if recorded.event.stream == "ACTIONS" else REMIT_ID
    if not wanted.fullmatch(recorded.event.subject):
        raise EnvelopeError("subject", f"{signed.subject} names no id of ours")
    if len(recorded.event.id) > MAX_EVENT_ID:
        raise EnvelopeError("schema", f"event on {signed.subject} has an id of {len(recorded.event.id)} characters")
    return recorded


def admit(evidence: Evidence, trust: Mapping[str, TrustedKey]) -> tuple[Recorded | None, str]:
    """Return the believed event and `valid`, or None and the code of what is wrong with it."""
    try:
        return believe(evidence, trust), VALID
    except EnvelopeError as error:
        return None, error.code


def judge_action(state: ActionState, recorded: Recorded | None, seq: int, code: str = VALID) -> tuple[ActionState, str]:
    """Fold one record of an action and return its `verify_status`; `code` says why `recorded` is None."""
    if recorded is None:
        return junk(state, seq), code
    state, finding = step(state, recorded, seq)
    return state, finding or VALID


def judge_remit(state: RemitState, recorded: Recorded | None, seq: int, code: str = VALID) -> tuple[RemitState, str]:
    """Fold one record of a remit and return its `verify_status`."""
    if recorded is None:
        return state, code
    grown = fold_remit(state, recorded, seq)
    if grown.n > state.n:
        return grown, VALID
    if recorded.event.n != state.n + 1:
        return grown, "order"
    return grown, "chain" if recorded.event.prev != state.head else "illegal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed statement about a prefix of one chain, kept outside the database: a cut tail contradicts it.

    `merkle_root` covers the records after `previous_seq`, so that one record can be proved without showing the others.
    """

    stream: str
    seq: int
    chain_head: str
    previous_seq: int
    merkle_root: str
    at: datetime
    kid: str
    signature: bytes = b""

    def document(self) -> dict[str, Any]:
        """Return the signed members."""
        return {
            "v": 1,
            "stream": self.stream,
            "seq": self.seq,
            "chain_head": self.chain_head,
            "previous_seq": self.previous_seq,
            "merkle_root": self.merkle_root,
            "at": self.at.isoformat(),
            "kid": self.kid,
        }

    def signed_bytes(self) -> bytes:
        """Return what the signature covers."""
        return CHECKPOINT_DOMAIN + canonical(self.document())

    def is_signed_by(self, key: VerifyKey) -> bool:
        """Return whether the checkpoint key signed exactly this."""
        try:
            key.verify(self.signed_bytes(), self.signature)
        except (BadSignatureError, ValueError, TypeError):
            return False
        return True

    def columns(self) -> tuple[object, ...]:
        """Return the columns of `audit.checkpoint` that repeat what is signed: all but `line`."""
        head, root = self.chain_head.removeprefix("sha-256:"), self.merkle_root.removeprefix("sha-256:")
        return (self.stream, self.seq, b64url_decode(head), self.previous_seq, b64url_decode(root), self.at, self.kid)

    def line(self) -> str:
        """Return the JSON line that is appended to the checkpoint file."""
        return canonical({"checkpoint": self.document(), "sig": b64url(self.signature)}).decode() + "\n"


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """Return the Ed25519 signature of a checkpoint."""
    return key.sign(checkpoint.signed_bytes()).signature


def is_believed(checkpoint: Checkpoint, keys: Mapping[str, VerifyKey]) -> bool:
    """Return whether a checkpoint key of the environment signed exactly this; an unknown kid is never believed."""
    key = keys.get(checkpoint.kid)
    return key is not None and checkpoint.is_signed_by(key)


def parse_checkpoint(line: str) -> Checkpoint:
    """Read one line of a checkpoint file; nothing is believed before `is_signed_by`.

    Raises:
        CanonicalError: the line is no checkpoint.

    """
    raw = strict_loads(line.encode())
    try:
        said = raw["checkpoint"]
        found = Checkpoint(
            stream=said["stream"],
            seq=said["seq"],
            chain_head=said["chain_head"],
            previous_seq=said["previous_seq"],
            merkle_root=said["merkle_root"],
            at=datetime.fromisoformat(said["at"]),
            kid=said["kid"],
            signature=b64url_decode(raw["sig"]),
        )
        found.columns()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CanonicalError(f"not a checkpoint: {type(error).__name__}") from None
    if any(type(number) is not int for number in (found.seq, found.previous_seq)) or found.at.tzinfo is None:
        raise CanonicalError("not a checkpoint: a sequence is no number, or its time has no offset")
    if any(type(name) is not str for name in (found.stream, found.kid)):
        raise CanonicalError("not a checkpoint: stream and kid are text")
    return found
