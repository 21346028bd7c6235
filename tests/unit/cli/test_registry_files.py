"""A registry directory is read whole or refused whole, and the refusal says where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from remit.cli.program import app
from remit.errors import BundleError
from remit.registry_files import load_document, load_registry

REGISTRY = Path(__file__).resolve().parents[3] / "infra" / "demo" / "registry"
ENVIRONMENT = {
    "BOOKKEEPER_PUBLIC_KEY": "U" + "A" * 55,
    "BANK_URL": "http://127.0.0.1:9",
    "BANK_HOST": "127.0.0.1:9",
}


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REGISTRY, tmp_path / "registry"))


def test_the_demonstration_registry_is_read_and_filled_in(registry: Path) -> None:
    content = load_registry(registry, ENVIRONMENT)
    assert content.tools["bank"].endpoint == "http://127.0.0.1:9/mcp"
    assert content.agents["bookkeeper"].public_key == ENVIRONMENT["BOOKKEEPER_PUBLIC_KEY"]
    assert "limits.cedar" in content.policies


def test_a_missing_variable_names_itself_and_its_file(registry: Path) -> None:
    with pytest.raises(BundleError, match=r"bank\.yaml: \$\{BANK_URL\} is not set"):
        load_registry(registry, {})


def test_a_value_never_becomes_structure(registry: Path) -> None:
    content = load_registry(registry, {**ENVIRONMENT, "BANK_HOST": "evil.example\nowner: mallory"})
    assert content.tools["bank"].egress == ["evil.example\nowner: mallory"]
    assert content.tools["bank"].owner == "payments@acme.example"


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("tools/bank.yaml", "tool: [", "bank.yaml line 1"),
        ("tools/bank.yaml", "tool: bank\ntool: other", "tool appears twice"),
        ("tools/bank.yaml", "1: bank", "quote it"),
        ("tools/bank.yaml", "tool: bank\nunknown: 1", "bank.yaml"),
        ("tools/bank.yaml", "- bank", "expected a mapping"),
        ("tools/bank.yaml", "", "found nothing"),
        ("tools/bank.yaml", "!!python/object/apply:os.system ['true']", "bank.yaml"),
        ("agents.yaml", "- name: bookkeeper", "agents by name"),
        ("agents.yaml", "bookkeeper: {name: other}", "bookkeeper"),
        ("agents.yaml", "bookkeeper: 7", "expected a mapping"),
    ],
)
def test_a_file_that_does_not_fit_is_named(registry: Path, path: str, text: str, said: str) -> None:
    (registry / path).write_text(text)
    with pytest.raises(BundleError, match=said.replace("(", r"\(")):
        load_registry(registry, ENVIRONMENT)


def test_one_tool_is_defined_once(registry: Path) -> None:
    shutil.copy(registry / "tools" / "bank.yaml", registry / "tools" / "copy.yaml")
    with pytest.raises(BundleError, match=r"copy\.yaml: tool bank is defined in .*bank\.yaml"):
        load_registry(registry, ENVIRONMENT)


@pytest.mark.parametrize("folder", ["tools", "policies"])
def test_an_empty_folder_is_a_mistake(registry: Path, folder: str) -> None:
    shutil.rmtree(registry / folder)
    with pytest.raises(BundleError, match=folder):
        load_registry(registry, ENVIRONMENT)


def test_scalars_are_those_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: no\nb: 2024-01-01\nc: 1.5\nd: -3\ne: true\nf: null\ng: 012\nh: .nan\ni: 1e3\nj: yes\nk:\n")
    assert load_document(path) == {
        "a": "no", "b": "2024-01-01", "c": 1.5, "d": -3, "e": True, "f": None, "g": "012", "h": ".nan", "i": 1000.0,
        "j": "yes", "k": None,
    }  # fmt: skip


def test_json_is_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1, 2.5, None, True, "t\u00e4sk"]}))
    assert load_document(path) == {"a": [1, 2.5, None, True, "t\u00e4sk"]}


def test_check_compiles_and_changes_nothing(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"REMIT_REGISTRY_{name}", value)
    good = CliRunner().invoke(app, ["apply", str(registry), "--check", "--json"])
    assert (good.exit_code, json.loads(good.output)["tools"]) == (0, 1)
    (registry / "policies" / "limits.cedar").write_text("permit (principal")
    bad = CliRunner().invoke(app, ["apply", str(registry), "--check"])
    assert (bad.exit_code, "limits.cedar" in bad.output) == (2, True)


def test_a_registry_cannot_publish_the_environment(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRONMENT, "AWS_SECRET_ACCESS_KEY": "s3cret"}.items():
        monkeypatch.setenv(name, value)
    given = [part for name, value in ENVIRONMENT.items() for part in ("--set", f"{name}={value}")]
    good = CliRunner().invoke(app, ["apply", str(registry), "--check", *given])
    assert (good.exit_code, "ok" in good.output) == (0, True), good.output
    none = CliRunner().invoke(app, ["apply", str(registry), "--check"])
    assert (none.exit_code, "give --set BANK_URL=value" in " ".join(none.output.split())) == (2, True), none.output
    tool = registry / "tools" / "bank.yaml"
    tool.write_text(tool.read_text().replace("owner: payments@acme.example", "owner: ${AWS_SECRET_ACCESS_KEY}"))
    greedy = CliRunner().invoke(app, ["apply", str(registry), "--check", *given])
    assert (greedy.exit_code, "AWS_SECRET_ACCESS_KEY" in greedy.output, "s3cret" in greedy.output) == (2, True, False)


def test_what_is_set_wins_over_the_environment_and_must_have_a_name(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"REMIT_REGISTRY_{name}", value)
    digests: set[str] = set()
    for more in ([], ["--set", "BANK_URL=http://127.0.0.1:8?a=b"]):
        found = CliRunner().invoke(app, ["apply", str(registry), "--check", "--json", *more])
        digests.add(json.loads(found.output)["policy_version"])
    assert len(digests) == 2
    wrong = CliRunner().invoke(app, ["apply", str(registry), "--check", "--set", "BANK_URL"])
    assert (wrong.exit_code, "expected NAME=value" in wrong.output) == (2, True)
