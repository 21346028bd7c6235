"""Hostile spellings of one good token, by the kinds of mistakes that JOSE libraries make; every case is the attacker's best try.

The kinds are those of the public JWS test vectors (Wycheproof: changed, missing and added parts, JSON serialization, `none`, keys
confused between algorithms, embedded keys, modified PKCS #1 padding, bad base64url), made anew for each verifier, so that nothing
but the one mistake can be the reason of the refusal.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from remit.canonical import b64url, b64url_decode
from tests.support.forging import CURVE_ORDER, STRANGER, as_bytes, header_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.forging import Key, Verifier

FORM = frozenset({"form"})
HEADER = frozenset({"form", "header"})
ALGORITHM = frozenset({"algorithm", "alg"})
NO_KEY = frozenset({"key", "kid", "signature"})
SIGNATURE = frozenset({"signature"})
CLAIMS = frozenset({"claims", "form"})
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DER of DigestInfo before the digest (RFC 8017 section 9.2 note 1)."""
SHA1_INFO = bytes.fromhex("3021300906052b0e03021a05000414")
SHA512_INFO = bytes.fromhex("3051300d060960864801650304020305000440")
SHA256_INFO_BARE = bytes.fromhex("302f300b06096086480165030402010420")
"""The same for SHA-256 without the NULL parameter, which RFC 8017 requires."""


@dataclass(frozen=True, slots=True)
class Case:
    """One token and the codes with which it may be refused."""

    name: str
    token: str
    codes: frozenset[str]


def corpus(verifier: Verifier, key: Key) -> Iterator[Case]:
    """Yield every case for a verifier that trusts this key."""
    yield from _parts(verifier, key)
    yield from _spellings(verifier, key)
    yield from _headers(verifier, key)
    yield from _algorithms(verifier, key)
    yield from _ambiguous(verifier, key)
    yield from _curve_signatures(verifier, key) if key.algorithm == "ES256" else _rsa_signatures(verifier, key)


def _good(verifier: Verifier, key: Key) -> tuple[str, str, str]:
    # Lengths that leave stray bits in the last character of every segment.
    header, payload = _padded(header_of(verifier, key)), _padded(verifier.claims)
    first, second, third = key.sign(header, payload).split(".")
    return first, second, third


def _padded(value: Mapping[str, Any]) -> bytes:
    return next(raw for pad in ("", "x", "xx") if len(raw := as_bytes({**value, "pad": pad})) % 3 == 1)


def _parts(verifier: Verifier, key: Key) -> Iterator[Case]:
    h, p, s = _good(verifier, key)
    flattened = json.dumps({"protected": h, "payload": p, "signature": s})
    general = json.dumps({"payload": p, "signatures": [{"protected": h, "signature": s}]})
    missing = {
        "signature": f"{h}.{p}.", "signature and dot": f"{h}.{p}", "payload": f"{h}..{s}", "payload and dot": f"{h}.{s}",
        "header": f".{p}.{s}", "header and dot": f"{p}.{s}", "all but payload": f".{p}.", "dots": p, "everything": "",
        "segments": "..", "middle": ".", "extra dot": f"{h}.{p}.{s}.", "extra segment": f"{h}.{p}.{s}.Zm9v",
        "five segments": f"{h}.{p}.{s}.{p}.{s}", "leading dot": f".{h}.{p}.{s}", "flattened JSON": flattened,
        "general JSON": general, "two tokens": f"{h}.{p}.{s},{h}.{p}.{s}", "detached": f"{h}..{s}",
        "colon for dot": f"{h}:{p}:{s}", "wide dots": f"{h}\uff0e{p}\uff0e{s}", "one dot leaders": f"{h}\u2024{p}\u2024{s}",
        "scheme": f"Bearer {h}.{p}.{s}", "too long": f"{h}.{p}{'A' * 8192}.{s}", "far too long": "A" * 1_000_000,
    }  # fmt: skip
    yield from (Case(f"parts: {name}", token, FORM) for name, token in missing.items())
    yield Case("changed first byte of the signature", f"{h}.{p}.{_turned(s)}", SIGNATURE)
    yield Case("changed last byte of the signature", f"{h}.{p}.{s[:-4]}{_turned(s[-4:])}", SIGNATURE)
    other = b64url(as_bytes({**verifier.claims, "pad": "y"}))
    yield Case("changed payload", f"{h}.{other}.{s}", SIGNATURE)
    yield Case("changed header", f"{b64url(as_bytes(header_of(verifier, key, x=1)))}.{p}.{s}", SIGNATURE)
    yield Case("another token's signature", f"{h}.{p}.{key.sign(b'{}', b'{}').split('.')[2]}", SIGNATURE)


def _turned(text: str) -> str:
    return ("A" if text[0] != "A" else "B") + text[1:]


def _spellings(verifier: Verifier, key: Key) -> Iterator[Case]:
    """Yield segments that decode to the same bytes in a lenient library, each under a signature over this very spelling."""
    good = _good(verifier, key)
    for place, segment in enumerate(good):
        for name, spelled in _respelled(segment):
            parts = [*good[:place], spelled, *good[place + 1 :]]
            named = f"spelling: {name} in segment {place + 1}"
            if place < 2 and spelled.isascii():
                yield Case(named, key.sign_text(".".join(parts[:2])), FORM)
            yield Case(f"{named}, signature unchanged", ".".join(parts), FORM)


def _respelled(segment: str) -> Iterator[tuple[str, str]]:
    last = ALPHABET.index(segment[-1])
    stray = 2 ** (4 if len(segment) % 4 == 2 else 2)
    for bits in range(1, stray):
        yield f"stray bits {bits}", segment[:-1] + ALPHABET[last ^ bits]
    yield from {
        "one pad": f"{segment}=", "two pads": f"{segment}==", "pad within": f"{segment[:4]}={segment[4:]}",
        "space before": f" {segment}", "spaces after": f"{segment}    ", "newline": f"{segment}\n", "CRLF": f"{segment}\r\n",
        "tab within": f"{segment[:8]}\t{segment[8:]}", "NUL": f"{segment}\0", "hashes": f"{segment}####",
        "question mark": f"?{segment}", "standard alphabet": f"{segment}+/", "percent": f"{segment}%3D",
        "impossible length": f"{segment}AAA", "letter beyond ASCII": f"{segment}\u00e9", "half a pair": f"{segment}\ud800",
    }.items()  # fmt: skip


def _headers(verifier: Verifier, key: Key) -> Iterator[Case]:
    good = header_of(verifier, key)
    crits: list[Any] = [["exp"], ["b64"], ["kid"], ["alg", "typ"], [], [1], "exp", {}, True, None]
    for crit in crits:
        text = as_bytes({**good, "crit": crit})
        yield Case(f"header: crit {crit!r}", key.sign(text, verifier.claims), HEADER)
    for b64 in (True, False, None):
        yield Case(f"header: b64 {b64}", key.sign(as_bytes({**good, "b64": b64}), verifier.claims), HEADER)
    raw = as_bytes(good)
    shapes: dict[str, bytes] = {
        "list": b"[]", "text": b'"at+jwt"', "number": b"1", "null": b"null", "no JSON": b"alg=ES256",
        "list of it": b"[%b]" % raw, "two of it": raw * 2, "trailing comma": raw[:-1] + b",}", "comment": raw + b"/**/",
        "not UTF-8": raw[:-1] + b',"x":"\xff"}',
        "BOM": b"\xef\xbb\xbf" + raw, "UTF-16": json.dumps(good).encode("utf-16"), "NaN": raw[:-1] + b',"x":NaN}',
        "infinity": raw[:-1] + b',"x":1e400}', "huge integer": raw[:-1] + b',"x":' + b"9" * 400 + b"}",
        "half a pair": raw[:-1] + b',"x":"\\ud800"}', "too deep": raw[:-1] + b',"x":' + b"[" * 500 + b"]" * 500 + b"}",
        "U+0000": raw[:-1] + b',"x":"\\u0000"}', "single quotes": raw.replace(b'"', b"'"),
    }  # fmt: skip
    yield from (Case(f"header: {name}", key.sign(text, verifier.claims), HEADER) for name, text in shapes.items())
    kids: list[Any] = [
        "unknown", "", "../../etc/passwd", f"{key.kid}\n", f"{key.kid}\0", f" {key.kid}", "a' OR '1'='1", "x" * 65, "%00",
        "\u212a", "http://evil.example/k", "a/b", "*", f"{key.kid}/../x", 7, True, ["a"], {"a": 1}, key.kid.lower(),
    ]  # fmt: skip
    for kid in kids:
        token = key.sign({**good, "kid": kid}, verifier.claims)
        yield Case(f"header: kid {ascii(kid)[:30]}", token, NO_KEY | {"form"} if kid == f"{key.kid}\0" else NO_KEY)


def _algorithms(verifier: Verifier, key: Key) -> Iterator[Case]:
    names: list[Any] = [
        "none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "ES384", "ES512", "ES256K", "EdDSA", "RS384", "RS512",
        "PS256", key.algorithm.lower(), f"{key.algorithm} ", f" {key.algorithm}", f"{key.algorithm}\n", None, True, 256,
        [key.algorithm], {"alg": key.algorithm}, "dir", "RSA-OAEP",
    ]  # fmt: skip
    for name in names:
        header = {**header_of(verifier, key), "alg": name}
        yield Case(f"alg {name!r}, signed with the key", key.sign(header, verifier.claims), ALGORITHM)
        unsigned = f"{b64url(as_bytes(header))}.{b64url(as_bytes(verifier.claims))}"
        yield Case(f"alg {name!r}, one byte for a signature", f"{unsigned}.AA", ALGORITHM)
    yield Case("alg absent", key.sign(header_of(verifier, key, alg=None), verifier.claims), ALGORITHM)
    for form, secret in _secrets(key).items():
        for name, hashed in (("HS256", hashlib.sha256), ("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
            text = f"{b64url(as_bytes(header_of(verifier, key, alg=name)))}.{b64url(as_bytes(verifier.claims))}"
            mac = b64url(hmac.new(secret, text.encode(), hashed).digest())
            yield Case(f"{name} with the public key as {form}", f"{text}.{mac}", ALGORITHM)
    other = next(each for name, each in STRANGER.items() if name != key.algorithm)
    confused = other.sign(header_of(verifier, key, alg=other.algorithm), verifier.claims)
    yield Case("the other algorithm under this kid", confused, ALGORITHM | SIGNATURE)
    stranger = STRANGER[key.algorithm]
    for name, pointer in _own_keys(stranger).items():
        token = stranger.sign(header_of(verifier, key, **pointer), verifier.claims)
        yield Case(f"attacker's key named by {name}", token, SIGNATURE)
        bare = stranger.sign(header_of(verifier, key, kid=None, **pointer), verifier.claims)
        yield Case(f"attacker's key named by {name} alone", bare, NO_KEY)


def _secrets(key: Key) -> dict[str, bytes]:
    public, spki = key.private.public_key(), serialization.PublicFormat.SubjectPublicKeyInfo
    pem, row = public.public_bytes(serialization.Encoding.PEM, spki), key.jwk()
    return {
        "PEM": pem,
        "PEM without newline": pem.strip(),
        "DER": public.public_bytes(serialization.Encoding.DER, spki),
        "JWK": json.dumps(row).encode(),
        "number": b64url_decode(row["x" if "x" in row else "n"]),
        "nothing": b"",
    }


def _own_keys(stranger: Key) -> dict[str, dict[str, Any]]:
    return {
        "jwk": {"jwk": stranger.jwk()},
        "jku": {"jku": "https://evil.example/jwks"},
        "x5u": {"x5u": "https://evil.example/x"},
        "x5c": {"x5c": ["MIIB"]},
        "nothing": {},
    }


def _ambiguous(verifier: Verifier, key: Key) -> Iterator[Case]:
    """Yield JSON with a member twice: two readers would see two tokens."""
    good, claims = as_bytes(header_of(verifier, key)), as_bytes(verifier.claims)
    for name in ("alg", "kid", "typ", "x"):
        for value in (json.dumps(header_of(verifier, key).get(name)), '"other"'):
            member = f'"{name}":{value}'.encode()
            twice = {"last": good[:-1] + b"," + member + b"}", "first": b"{" + member + b"," + good[1:]}
            if name == "x":
                twice = {"twice": good[:-1] + b"," + member + b"," + member + b"}"}
            for place, text in twice.items():
                yield Case(f"{name} again, {place}, {value}", key.sign(text, verifier.claims), FORM)
    escaped = good[:-1] + b',"\\u0061lg":"none"}'
    yield Case("alg again, escaped", key.sign(escaped, verifier.claims), FORM)
    for name in verifier.claims:
        member = json.dumps({name: verifier.claims[name]}).encode()[1:-1]
        text = claims[:-1] + b"," + member + b"}"
        yield Case(f"claim {name} twice", key.sign(header_of(verifier, key), text), CLAIMS)
    for shape in (b"[]", b"null", b'"x"', b"foo", b"[%b]" % claims, claims * 2, claims[:-1] + b',"x":NaN}'):
        yield Case(f"claims {shape[:12]!r}", key.sign(header_of(verifier, key), shape), CLAIMS)


def _curve_signatures(verifier: Verifier, key: Key) -> Iterator[Case]:
    h, p, s = _good(verifier, key)
    raw = b64url_decode(s)
    r, t = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    edges = {"0": 0, "1": 1, "n-1": CURVE_ORDER - 1, "n": CURVE_ORDER, "2^256-1": 2**256 - 1}
    forms = {f"r={a} s={b}": _pair(x, y) for a, x in edges.items() for b, y in edges.items()}
    forms |= {f"own r, s={b}": _pair(r, y) for b, y in edges.items()} | {
        f"r={a}, own s": _pair(x, t) for a, x in edges.items()
    }
    forms |= {
        "DER": encode_dss_signature(r, t), "s before r": _pair(t, r), "a byte less": raw[:-1], "a byte more": raw + b"\0",
        "a zero before": b"\0" + raw, "wide coordinates": b"\0" + raw[:32] + b"\0" + raw[32:], "only r": raw[:32],
        "twice": raw * 2, "r of n-r": _pair(CURVE_ORDER - r, t),
        "96 bytes": raw[:32].rjust(48, b"\0") + raw[32:].rjust(48, b"\0"),
    }  # fmt: skip
    if r < 2**256 - CURVE_ORDER:
        forms["r+n"] = _pair(r + CURVE_ORDER, t)
    forms["s mod n in DER, negated"] = encode_dss_signature(r, CURVE_ORDER - t)
    for name, form in forms.items():
        yield Case(f"curve: {name}", f"{h}.{p}.{b64url(form)}", SIGNATURE)


def _pair(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def malleated(token: str) -> str:
    """Return the same token under the other signature that anybody can compute from an ECDSA one: s becomes n - s."""
    text, _, signature = token.rpartition(".")
    raw = b64url_decode(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), CURVE_ORDER - int.from_bytes(raw[32:], "big"))
    return f"{text}.{b64url(_pair(*decode_dss_signature(der)))}"


def _rsa_signatures(verifier: Verifier, key: Key) -> Iterator[Case]:
    """Yield signatures that a lenient PKCS #1 v1.5 verifier takes: made with the private key, so only the form is wrong."""
    h, p, s = _good(verifier, key)
    signed = f"{h}.{p}".encode()
    size, modulus = key.private.key_size // 8, key.private.public_key().public_numbers().n
    for name, block in _blocks(signed, size).items():
        yield Case(f"rsa: {name}", f"{h}.{p}.{b64url(_powered(block, key))}", SIGNATURE)
    raw = b64url_decode(s)
    pss = key.private.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    plus = int.from_bytes(raw, "big") + modulus
    forms = {
        "PSS": pss, "a byte less": raw[:-1], "a byte more": raw + b"\0", "a zero before": b"\0" + raw, "zero": b"\0" * size,
        "one": b"\0" * (size - 1) + b"\1", "not reduced": plus.to_bytes(size + 1, "big"),
        "modulus": modulus.to_bytes(size, "big"),
        "negated": (modulus - int.from_bytes(raw, "big")).to_bytes(size, "big"), "twice": raw * 2,
        "RS512's": jwt.get_algorithm_by_name("RS512").sign(signed, key.private),
    }  # fmt: skip
    for name, form in forms.items():
        yield Case(f"rsa: {name}", f"{h}.{p}.{b64url(form)}", SIGNATURE)


def _blocks(signed: bytes, size: int) -> dict[str, bytes]:
    hashed = hashlib.sha256(signed).digest()
    info = SHA256_INFO + hashed
    good, eight = _block(info, size), b"\0\1" + b"\xff" * 8 + b"\0"
    sha1 = SHA1_INFO + hashlib.sha1(signed, usedforsecurity=False).digest()
    return {
        "block type 0": _block(info, size, kind=0),
        "block type 2": _block(info, size, kind=2),
        "first byte 1": b"\x01" + good[1:],
        "no zero after the padding": b"\0\1".ljust(size - len(info), b"\xff") + info,
        "one byte of padding 0xfe": good.replace(b"\xff\0", b"\xfe\0", 1),
        "padding of zeros": _block(info, size, fill=0),
        "one byte of padding, garbage after": (b"\0\1\xff\0" + info).ljust(size, b"\xaa"),
        "eight bytes of padding, garbage after": (eight + info).ljust(size, b"\0"),
        "no NULL parameter": _block(SHA256_INFO_BARE + hashed, size),
        "only the digest": _block(hashed, size),
        "zero byte after": _block(info + b"\0", size),
        "SHA-1 inside": _block(sha1, size),
        "SHA-512 inside": _block(SHA512_INFO + hashlib.sha512(signed).digest(), size),
        "SHA-384's name": _block(SHA256_INFO[:14] + b"\x02" + SHA256_INFO[15:] + hashed, size),
        "digest cut": _block(info[:-1], size),
        "other digest": _block(SHA256_INFO + hashlib.sha256(b"").digest(), size),
        "all 0xff": b"\0".ljust(size, b"\xff"),
        "nothing": b"\0" * size,
        "one": b"\1".rjust(size, b"\0"),
    }


def _block(info: bytes, size: int, *, kind: int = 1, fill: int = 0xFF) -> bytes:
    return bytes([0, kind]) + bytes([fill]) * (size - len(info) - 3) + b"\0" + info


def _powered(block: bytes, key: Key) -> bytes:
    numbers = key.private.private_numbers()
    n = numbers.public_numbers.n
    return pow(int.from_bytes(block, "big") % n, numbers.d, n).to_bytes(key.private.key_size // 8, "big")
