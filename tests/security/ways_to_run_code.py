"""What in a module could make a program of a text: shells, processes, evaluation, pickles, templates."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHELLS = {"subprocess", "pty", "pexpect", "commands", "pickle", "marshal", "shelve", "jinja2", "code"}
CALLS = {"eval", "exec", "compile", "__import__"}
OS = ("system", "popen", "spawn", "exec", "posix_spawn", "fork")


def ways_to_run_code(path: Path) -> Iterator[str]:
    """Yield each thing in a module by which a text could become a program."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in SHELLS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in SHELLS:
            yield str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.func.id
        elif isinstance(node, ast.Attribute) and (
            node.attr.startswith("create_subprocess") or node.attr == "subprocess_exec"
        ):
            yield node.attr
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr.startswith(OS)) == ("os", True)
        ):
            yield f"os.{node.attr}"
