"""NATS nkeys: Ed25519 keys in the broker's base32 spelling. The `nkeys` package signs but cannot generate.

Source: nats-io/nkeys, `strkey.go` and `crc16.go` (prefix bytes, CRC-16/XMODEM, little endian).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct

from nacl.signing import SigningKey

from remit.nkey import signing_key

PREFIX_SEED = 18 << 3
PREFIX_USER = 20 << 3
PUBLIC_KEY = re.compile(r"^U[A-Z2-7]{55}$")
"""A user's public nkey, as the server file and the registry name it."""


def _checked(raw: bytes) -> str:
    # binascii.crc_hqx with a zero start value is the CRC-16/XMODEM of the nkey format.
    return base64.b32encode(raw + struct.pack("<H", binascii.crc_hqx(raw, 0))).rstrip(b"=").decode()


def new_seed() -> str:
    """Return a fresh user seed (`SU…`)."""
    header = bytes([PREFIX_SEED | PREFIX_USER >> 5, (PREFIX_USER & 31) << 3])
    return _checked(header + bytes(SigningKey.generate()))


def public_key(seed: str) -> str:
    """Return the public nkey (`U…`) of a user seed."""
    return _checked(bytes([PREFIX_USER]) + bytes(signing_key(seed).verify_key))
