"""Where a tool may live, and which secrets may stand in a header."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from services.executor.connectors.credentials import EnvironmentCredentials, FileCredentials, usable
from services.executor.connectors.egress import Endpoint, endpoint_of, is_allowed_address, is_listed
from services.executor.connectors.http import fill, query

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINTS: list[tuple[str, Endpoint | None]] = [
    ("https://Bank.example/mcp", Endpoint("https", "bank.example", 443)),
    ("http://127.0.0.1:9000/x", Endpoint("http", "127.0.0.1", 9000)),
    ("http://[::1]:9000/x", Endpoint("http", "::1", 9000)),
    ("https://user:pw@bank.example", None),
    ("ftp://bank.example", None),
    ("https://", None),
    ("https://bank.example:port", None),
    ("", None),
]


@pytest.mark.parametrize(("url", "expected"), ENDPOINTS)
def test_an_endpoint_is_a_plain_url(url: str, expected: Endpoint | None) -> None:
    assert endpoint_of(url) == expected


LISTED: list[tuple[str, list[str], bool]] = [
    ("https://bank.example", [], False),
    ("https://bank.example", ["bank.example"], True),
    ("https://bank.example", ["BANK.example:443"], True),
    ("https://bank.example", ["bank.example:8443"], False),
    ("https://bank.example", ["example"], False),
    ("https://evil-bank.example", ["bank.example"], False),
    ("https://bank.example.evil.com", ["bank.example"], False),
    ("http://[::1]:9000", ["[::1]:9000"], True),
    ("http://[::1]:9000", ["::1"], True),
    ("http://127.0.0.1:9000", ["127.0.0.0/8"], False),
]


@pytest.mark.parametrize(("url", "egress", "expected"), LISTED)
def test_only_listed_hosts_are_reached(url: str, egress: list[str], expected: bool) -> None:
    endpoint = endpoint_of(url)
    assert endpoint is not None
    assert is_listed(endpoint, egress) is expected


ADDRESSES: list[tuple[str, str, list[str], bool]] = [
    ("93.184.216.34", "bank.example", ["bank.example"], True),
    ("10.0.0.5", "bank.example", ["bank.example"], False),
    ("10.0.0.5", "bank.example", ["bank.example", "10.0.0.0/8"], True),
    ("10.0.0.5", "bank.example", ["bank.example", "10.0.0.5"], True),
    ("127.0.0.1", "bank.example", ["bank.example"], False),
    ("127.0.0.1", "localhost", ["localhost"], True),
    ("::1", "localhost", ["localhost:9000"], True),
    ("127.0.0.1", "127.0.0.1", ["127.0.0.1:9000"], True),
    ("169.254.169.254", "bank.example", ["bank.example"], False),
    ("169.254.169.254", "bank.example", ["bank.example", "0.0.0.0/0"], False),
    ("169.254.169.254", "bank.example", ["bank.example", "169.254.169.254"], True),
    ("::ffff:169.254.169.254", "bank.example", ["bank.example", "::/0"], False),
    ("::ffff:10.0.0.5", "bank.example", ["bank.example"], False),
    ("fd00:ec2::254", "bank.example", ["bank.example"], False),
    ("fe80::1", "bank.example", ["bank.example", "fe80::/10"], False),
    ("224.0.0.1", "bank.example", ["bank.example"], False),
    ("0.0.0.0", "bank.example", ["bank.example"], False),  # noqa: S104  (an address to refuse)
    ("100.64.0.1", "bank.example", ["bank.example"], False),
    ("::1", "bank.example", ["[::1]:80"], True),
    ("64:ff9b::10.0.0.5", "bank.example", ["bank.example"], False),
    ("64:ff9b::10.0.0.5", "bank.example", ["bank.example", "10.0.0.0/8"], True),
    ("64:ff9b::169.254.169.254", "bank.example", ["bank.example", "::/0", "0.0.0.0/0"], False),
    ("64:ff9b::169.254.169.254", "bank.example", ["bank.example", "64:ff9b::a9fe:a9fe"], True),
    ("64:ff9b::8.8.8.8", "bank.example", ["bank.example"], True),
    ("64:ff9b:1::10.0.0.5", "bank.example", ["bank.example"], False),
    ("2002:a00:5::1", "bank.example", ["bank.example"], False),
    ("2002:a9fe:a9fe::1", "bank.example", ["bank.example", "2002::/16"], False),
    ("::10.0.0.5", "bank.example", ["bank.example"], False),
    ("::169.254.169.254", "bank.example", ["bank.example", "::/0"], False),
    ("::ffff:0:10.0.0.5", "bank.example", ["bank.example"], False),
    ("2001:0:808:808:0:0:f5ff:fffa", "bank.example", ["bank.example"], False),
    ("2606:4700::5efe:10.0.0.5", "bank.example", ["bank.example"], False),
    ("2606:4700::1", "bank.example", ["bank.example"], True),
    ("fec0::1", "bank.example", ["bank.example"], False),
    ("fec0::1", "bank.example", ["bank.example", "fec0::/10"], True),
    ("::", "bank.example", ["bank.example"], False),
    ("ff0e::1", "bank.example", ["bank.example"], False),
    ("224.1.1.1", "bank.example", ["bank.example"], False),
    ("::ffff:127.0.0.1", "localhost", ["localhost"], True),
]


@pytest.mark.parametrize(("ip", "host", "egress", "expected"), ADDRESSES)
def test_addresses_that_are_not_public_must_be_listed_themselves(
    ip: str, host: str, egress: list[str], expected: bool
) -> None:
    assert is_allowed_address(ipaddress.ip_address(ip), Endpoint("https", host, 443), egress) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" abc \n", "abc"), ("a b", None), ("a\nb", None), ("", None), ("ü", None), ("x" * 5000, None)],
)
def test_a_secret_must_fit_a_header(text: str, expected: str | None) -> None:
    assert usable(text) == expected


async def test_credentials_come_by_plain_names_only(tmp_path: Path) -> None:
    (tmp_path / "bank").write_text("secret\n")
    provider = FileCredentials(tmp_path / "sub")
    (tmp_path / "sub").mkdir()
    assert await provider.fetch("../bank") is None
    assert await FileCredentials(tmp_path).fetch("bank") == "secret"
    assert await EnvironmentCredentials({"REMIT_CREDENTIAL_BANK_API": "s"}).fetch("bank-api") == "s"
    assert await EnvironmentCredentials({}).fetch("bank-api") is None


def test_path_arguments_are_encoded_and_leave_the_body() -> None:
    path, rest = fill("/a/{id}/b/{no}", {"id": "x/../y?z=1#", "no": 5, "text": "t"})
    assert path == "/a/x%2F..%2Fy%3Fz%3D1%23/b/5"
    assert rest == {"text": "t"}


def test_query_parameters_spell_values_as_json_does() -> None:
    found = query({"a": [1, 2], "b": None, "c": {"d": 1}, "e": True, "f": "x"})
    assert found == [("a", "1"), ("a", "2"), ("c", '{"d":1}'), ("e", "true"), ("f", "x")]
