"""Messages that no honest service sends, drawn by chance from a real event: broken, forged, too deep, too new, out of place.

Every one is well formed as a NATS message and small enough to be stored. None of them may change anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remit.canonical import b64url
from remit.envelope import CHAIN_HEADER, KID_HEADER, SIGNATURE_HEADER, message

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from remit.envelope import Signer

MAX_BODY = 40_000
"""Below the stream's 64 KiB with headers, so that the broker takes it."""
DEEP = 9_000


@dataclass(frozen=True, slots=True)
class Dose:
    """One message to send; `kind` is for the tally."""

    kind: str
    subject: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    """Makes doses for one writer: `signer` is its own key, `stranger` another service's, `sample` a valid event of `subject`."""

    chance: random.Random
    signer: Signer
    stranger: Signer

    def dose(self, subject: str, sample: bytes, *, spare: str | None = None) -> Dose:
        """Return one dose for a subject, of any kind but the spared one."""
        kind = self.chance.choice(sorted(RECIPES.keys() - {spare}))
        return RECIPES[kind](self, kind, subject, sample)

    def signed(self, kind: str, subject: str, body: bytes, signer: Signer | None = None) -> Dose:
        """Sign a body as its writer would, whatever is in it."""
        by = signer or self.signer
        signature = by.key.sign(message(subject, body)).signature
        return Dose(kind, subject, body, {KID_HEADER: by.kid, SIGNATURE_HEADER: b64url(signature)})

    def changed(self, sample: bytes, **fields: Any) -> bytes:
        """Return the sample with other context attributes."""
        return json.dumps({**json.loads(sample), **fields}).encode()


def _broken_text(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    bodies = (
        b"",
        sample[: kitchen.chance.randrange(1, len(sample))],
        b"\xef\xbb\xbf" + sample,
        kitchen.chance.randbytes(kitchen.chance.randrange(1, 2_000)),
        sample.replace(b'"n":', b'"n":1,"n":', 1),
        b"null",
        b"[" + sample + b"]",
        b'"' + b"x" * MAX_BODY + b'"',
    )
    return kitchen.signed(kind, subject, kitchen.chance.choice(bodies))


def _numbers(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    value = kitchen.chance.choice([b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 5_000, b"-0", b"1.0", b'"1"'])
    body = sample.replace(b'"n":', b'"n":' + value + b',"was":', 1)
    return kitchen.signed(kind, subject, body)


def _deep(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    opening, closing = kitchen.chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opening * DEEP + b"1" + closing * DEEP
    place = kitchen.chance.choice([b'"data":', b'"traceparent":', b'"subject":'])
    body = b"{" + place + inner[: MAX_BODY - 20] + b"," + sample[1:]
    return kitchen.signed(kind, subject, kitchen.chance.choice([body, inner]))


def _version(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    # A next version that is properly signed is no poison: it waits for an upgraded replica (row 34).
    version = kitchen.chance.choice(["v0", "v99", "v1.1", "V1", "v-1", ""])
    said = json.loads(sample)["type"].rpartition(".")[0]
    return kitchen.signed(kind, subject, kitchen.changed(sample, type=f"{said}.{version}"))


def _fields(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    change = kitchen.chance.choice(
        [
            {"caveat": "an unknown constraint"},
            {"subject": "0" * 32},
            {"source": "/remit/nobody"},
            {"time": "yesterday"},
            {"data": None},
            {"n": 10**30},
            {"kid": kitchen.stranger.kid},
            {"id": "\u0000" * 50},
            {"specversion": "2.0"},
        ]
    )
    return kitchen.signed(kind, subject, kitchen.changed(sample, **change))


def _chain(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    change = kitchen.chance.choice(
        [{"n": 1_000}, {"prev": f"sha-256:{'A' * 43}"}, {"id": "another", "n": 2, "prev": f"sha-256:{'B' * 43}"}]
    )
    return kitchen.signed(kind, subject, kitchen.changed(sample, **change))


def _signature(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    good = kitchen.signed(kind, subject, sample)
    headers = kitchen.chance.choice(
        [
            {},
            {KID_HEADER: good.headers[KID_HEADER]},
            {**good.headers, SIGNATURE_HEADER: b64url(kitchen.chance.randbytes(64))},
            {**good.headers, SIGNATURE_HEADER: b64url(kitchen.chance.randbytes(63))},
            {**good.headers, SIGNATURE_HEADER: "not base64url !"},
            {**good.headers, SIGNATURE_HEADER: good.headers[SIGNATURE_HEADER] + "="},
        ]
    )
    newer = kitchen.changed(sample, type=json.loads(sample)["type"].replace(".v1", ".v2"))
    return Dose(kind, subject, kitchen.chance.choice([kitchen.changed(sample, n=7), newer]), headers)


def _kid(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    good = kitchen.signed(kind, subject, sample)
    kid = kitchen.chance.choice(["nobody-2020-01", "x" * 500, "../../etc/passwd", kitchen.signer.kid.upper()])
    return Dose(kind, subject, good.body, {**good.headers, KID_HEADER: kid})


def _type(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    return kitchen.signed(kind, subject, kitchen.changed(sample, kid=kitchen.stranger.kid), kitchen.stranger)


def _carried(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    dose = kitchen.signed(kind, subject, kitchen.changed(sample, prev=f"sha-256:{'C' * 43}"))
    chains = ["a:b:c:d", "," * 500, "proposed:" * 200, "evaluated:k:AAAA:" + "A" * 8_000]
    return Dose(kind, subject, dose.body, {**dose.headers, CHAIN_HEADER: kitchen.chance.choice(chains)})


def _subject(kitchen: Kitchen, kind: str, subject: str, sample: bytes) -> Dose:
    root, _, short = subject.split(".")
    other = kitchen.chance.choice(["x", "0" * 31, "F" * 32, "rem_", "$", "null", "%00", "é", "a" * 200])
    return kitchen.signed(kind, f"{root}.{other}.{short}", sample)


RECIPES: dict[str, Callable[[Kitchen, str, str, bytes], Dose]] = {
    "broken text": _broken_text,
    "numbers": _numbers,
    "deep nesting": _deep,
    "version": _version,
    "fields": _fields,
    "chain": _chain,
    "signature": _signature,
    "kid": _kid,
    "type": _type,
    "carried chain": _carried,
    "subject": _subject,
}


def junk(chance: random.Random) -> bytes:
    """Return bytes that mean nothing to anybody."""
    return chance.choice(
        [
            b"",
            b"{",
            b"null",
            b"[" * DEEP,
            b'{"a":' * DEEP,
            b'{"n": NaN}',
            b"\xff\xfe\x00",
            b'{"v": 99}',
            b"0" * 32,
            chance.randbytes(chance.randrange(1, 500)),
            b'{"proposal": "' + b"x" * MAX_BODY + b'"}',
        ]
    )
