"""SECURITY.md and the tests speak of the same things: each risk has its test, each test that is named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
FILES = {"asi": "tests/security/test_owasp_agentic.py", "mcp": "tests/security/test_owasp_mcp.py"}
RISKS = [f"{family}{number:02}" for family in FILES for number in range(1, 11)]
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<test>test_\w+))?`")
ROW = re.compile(
    r"^\| (?P<risk>(?:ASI|MCP)\d\d)\b[^|]*\| `(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)`", re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]+)\)")


def functions_of(file: str) -> set[str]:
    """Return the names of the test functions of a module, none when there is no such file."""
    path = ROOT / file
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {each.name for each in functions if each.name.startswith("test_")}


@pytest.mark.parametrize("risk", RISKS)
def test_risk_has_one_test_that_bears_its_id_and_one_row_that_names_it(risk: str) -> None:
    file = FILES[risk[:3]]
    [test] = [name for name in functions_of(file) if name.startswith(f"test_{risk}_")]
    rows = [(row["file"], row["test"]) for row in ROW.finditer(TEXT) if row["risk"] == risk.upper()]
    assert rows == [(file, test)]


def test_every_test_that_is_named_exists() -> None:
    named = {(match["file"], match["test"]) for match in NAMED.finditer(TEXT)}
    assert len(named) > len(RISKS)
    missing = [
        (file, test)
        for file, test in sorted(named, key=str)
        if not (ROOT / file).is_file() or (test is not None and test not in functions_of(file))
    ]
    assert missing == []


def test_no_test_is_named_without_its_file() -> None:
    loose = re.findall(r"`(test_\w+|(?!tests/)\S*::\S+)`", TEXT)
    assert loose == []


def test_every_link_leads_somewhere() -> None:
    assert [link["path"] for link in LINK.finditer(TEXT) if not (ROOT / link["path"]).exists()] == []
