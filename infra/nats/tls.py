"""Certificates of one environment's brokers and their clients, made with `cryptography` alone.

Two authorities, and never one for both: a client certificate opens port 4222 and there the nkey decides; whoever may open a
route speaks for every account. Python 3.13 verifies strictly, hence the key identifiers and usages (RFC 5280 section 4.2.1).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.local import secret_files
from remit.clock import now

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

AUTHORITY_LIFE = timedelta(days=3_650)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=60)
"""A leaf with less life left is made anew; two months, so that a monthly run never comes too late."""
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a certificate may be shown for: as the server that was called, as the client that calls, or both."""

    server: bool = False
    client: bool = False

    def extension(self) -> x509.ExtendedKeyUsage:
        """Return the extended key usages."""
        named = ((self.server, ExtendedKeyUsageOID.SERVER_AUTH), (self.client, ExtendedKeyUsageOID.CLIENT_AUTH))
        return x509.ExtendedKeyUsage([oid for is_wanted, oid in named if is_wanted])


class Authority:
    """One certificate authority, kept as `<name>.crt` and `<name>.key`; the key belongs on no machine that runs a program."""

    def __init__(self, directory: Path, name: str) -> None:
        """Read the authority, or make it when it does not exist yet."""
        self.certificate_file, key_file = directory / f"{name}.crt", directory / f"{name}.key"
        if not key_file.exists():
            self._make(name, key_file)
        self._key = _private_key(key_file)
        self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())

    def issue(self, stem: Path, names: tuple[str, ...], usage: Usage) -> bool:
        """Write `<stem>.crt` and `<stem>.key` unless they still serve; return whether they are new.

        `names` are DNS names or addresses; the first is the common name.
        """
        certificate_file, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
        if key_file.exists() and self._still_serves(certificate_file, names):
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._leaf(key.public_key(), names, usage).sign(self._key, hashes.SHA256())
        secret_files.write(key_file, _pem(key))
        secret_files.write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM).decode())
        return True

    def _make(self, name: str, key_file: Path) -> None:
        key, subject = ec.generate_private_key(ec.SECP256R1()), _subject(f"Remit {name}")
        public = key.public_key()
        certificate = (
            _dated(now(), AUTHORITY_LIFE)
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        secret_files.write(self.certificate_file, certificate.public_bytes(serialization.Encoding.PEM).decode())
        secret_files.write(key_file, _pem(key))

    def _leaf(self, public: ec.EllipticCurvePublicKey, names: tuple[str, ...], usage: Usage) -> x509.CertificateBuilder:
        return (
            _dated(now(), LEAF_LIFE)
            .subject_name(_subject(names[0]))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(usage.extension(), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def _still_serves(self, certificate_file: Path, names: tuple[str, ...]) -> bool:
        if not certificate_file.exists():
            return False
        found = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (
            found.issuer == self._certificate.subject
            and found.not_valid_after_utc - now() > RENEW_BEFORE
            and set(listed) == {_general_name(name) for name in names}
        )


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} holds no elliptic-curve key; restore it from a copy")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _dated(start: datetime, life: timedelta) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    return builder.not_valid_before(start - CLOCK_SKEW).not_valid_after(start + life)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
