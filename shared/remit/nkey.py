"""User nkeys as Ed25519 keys: an agent's seed signs its proposals, its public nkey in the registry verifies them.

Source: nats-io/nkeys, `strkey.go` and `crc16.go`: base32 of prefix, 32 key bytes, CRC-16/XMODEM little endian, no padding.
"""

from __future__ import annotations

import base64
import binascii
import struct

from nacl.signing import SigningKey, VerifyKey

_SEED, _USER = 18 << 3, 20 << 3
_USER_PREFIX = bytes([_USER])
_SEED_PREFIX = bytes([_SEED | _USER >> 5, (_USER & 31) << 3])
"""A seed packs both prefixes into two bytes, five bits each way."""
_KEY_BYTES = 32


def signing_key(seed: str) -> SigningKey:
    """Return the key inside a user seed (`SU…`).

    Raises:
        ValueError: the text is no user seed; it is never quoted.

    """
    return SigningKey(_payload(seed.strip(), _SEED_PREFIX))


def verify_key(public: str) -> VerifyKey:
    """Return the key inside a public user nkey (`U…`).

    Raises:
        ValueError: the text is no public user nkey.

    """
    return VerifyKey(_payload(public, _USER_PREFIX))


def _payload(text: str, prefix: bytes) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise ValueError("not an nkey: not base32") from None
    body, checksum = raw[:-2], raw[-2:]
    # crc_hqx with a zero start value is CRC-16/XMODEM.
    if len(body) != len(prefix) + _KEY_BYTES or struct.pack("<H", binascii.crc_hqx(body, 0)) != checksum:
        raise ValueError("not an nkey: wrong length or checksum")
    if body[: len(prefix)] != prefix:
        raise ValueError("not the nkey of a user")
    return body[len(prefix) :]
