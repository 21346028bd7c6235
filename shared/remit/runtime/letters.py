"""The form of a dead letter: what was not processed, by whom and why, small enough to be stored whatever it was."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import orjson

from remit.canonical import digest_bytes
from remit.clock import now
from remit.envelope import KID_HEADER, SIGNATURE_HEADER

if TYPE_CHECKING:
    from remit.runtime.inbound import Inbound

MAX_BODY = 40_960
"""Bytes of the original that a letter keeps; its digest always covers all of them."""
MAX_TEXT = 1_000
"""Characters of a detail or of a header, which strangers may have written."""


def letter(service: str, inbound: Inbound, *, code: str, detail: str, keep: int = MAX_BODY) -> bytes:
    """Return a letter about a message, with the first `keep` bytes of its body.

    `body` is base64; `body_bytes` and `body_digest` describe the whole of it, so that a shortened one can be told and matched.
    """
    kept = inbound.body[: min(keep, MAX_BODY)]
    headers = {
        name: inbound.headers[name][:MAX_TEXT] for name in (KID_HEADER, SIGNATURE_HEADER) if name in inbound.headers
    }
    return orjson.dumps(
        {
            "v": 1,
            "service": service,
            "code": code,
            "detail": detail[:MAX_TEXT],
            "stream": inbound.stream,
            "seq": inbound.seq,
            "subject": inbound.subject,
            "headers": headers,
            "body": base64.b64encode(kept).decode(),
            "body_bytes": len(inbound.body),
            "body_digest": digest_bytes(inbound.body),
            "at": now().isoformat(),
        }
    )
