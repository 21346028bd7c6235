"""What a name in text gives its value to: assignments, YAML with its blocks and lists, tables with a header. Pure.

Every rule returns spans of the text; nothing here decides what stands in their place.
"""

from __future__ import annotations

import re

from remit.redaction_names import is_secret_member, is_secret_name

MARK = "[redacted]"
"""Stands where something was, so that list positions and required members keep their place."""
NAME = re.compile(
    r"(?<![\w.-])(?P<name>[A-Za-z]{2,16}[ ](?i:keys?|ids?|codes?|string)|[A-Za-z_-][\w.-]{0,63})"
    r"(?:\\?[\"'`*]){0,3}[ \t]{0,8}(?:=>|:=|[:=>])[*`]{0,2}[ \t]{0,8}"
)
"""`name:`, `"name":`, `name=`, `**Name:**`, `<name>`: whatever gives the text after it a name."""
_VALUE = re.compile(
    r"(?:[&!][\w!-]{1,40}[ ]){0,2}"  # an anchor or a tag of YAML 1.2, sections 6.8 and 6.9
    r"(?:\\+\"(?:[^\"\\]|\\(?!\"))*(?:\\+\")?|\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?"
    r"|(?i:(?:basic|bearer|digest|dpop|negotiate|token)[ ]+)?[^\s,;&<>\"'`)}\]]+\]?)"
)
_REST = re.compile(r"[^\r\n]+")
_NOTHING = frozenset(
    {"", "null", "none", "nil", "true", "false", "undefined", '""', "''", "required", "optional", "yes", "no"}
)
_OPENS = re.compile(r"[\[{(]\s*(?:[\"'\[{(\]})]|$)", re.MULTILINE)
"""A structure begins, whose own members are looked at."""
_BLOCK = re.compile(r"(?P<style>[|>][-+0-9]{0,2})?[ \t]*(?:#[^\r\n]*)?(?:\r?\n|$)")
_LINE = re.compile(r"(?P<indent>[ \t]*)(?P<rest>[^\r\n]*)(?:\r?\n|$)")
_CELL = re.compile(r"\s*\"?[A-Za-z][\w .-]{0,40}\"?\s*")
_SEPARATORS = (",", ";", "\t")


def assigned(text: str, found: re.Match[str]) -> tuple[int, int] | None:
    """Return where the value stands that a name in text is given, or None when the name is no secret's or there is none."""
    if not is_secret_name(found["name"]):
        return None
    start = text.rfind("\n", 0, found.start()) + 1
    before = text[start : found.start()]
    is_line = not before.strip(" \t-*#>\"'")
    if is_line and found.group().rstrip(" \t").endswith(":"):
        block = _block(text, found.end(), indent=len(before) - len(before.lstrip(" \t-")))
        if block is not None:
            return block
    value = _VALUE.match(text, found.end())
    if value is None or _OPENS.match(text, found.end()):
        return None
    if value.group().startswith(MARK):
        return found.end(), found.end() + len(MARK)
    if is_line and '"' not in found.group() and value.group()[0] not in "\"'":
        value = _REST.match(text, found.end()) or value  # a line of its own: phrases have spaces
    said = value.group().strip(" \t,;").lower()
    is_count = said.isdigit() and found["name"].endswith("s") and not is_secret_member(found["name"], int(said[:9]))
    return None if said in _NOTHING or is_count else value.span()


def _block(text: str, at: int, *, indent: int) -> tuple[int, int] | None:
    """Return the span of the block scalar, list or mapping under a name (YAML 1.2 sections 8.1 and 8.2)."""
    opening = _BLOCK.match(text, at)
    if opening is None or opening.end() == at == len(text):
        return None
    first, last, position = -1, -1, opening.end()
    while position < len(text):
        line = _LINE.match(text, position)
        if line is None:
            break
        depth = len(line["indent"])
        is_item = opening["style"] is None and depth == indent and line["rest"].startswith("- ")
        if line["rest"] and depth <= indent and not is_item:
            break
        if line["rest"]:
            first, last = (line.start("rest") if first < 0 else first), line.end("rest")
        position = line.end()
    return None if first < 0 else (first, last)


def table_cells(text: str) -> list[tuple[int, int]]:
    """Return the cells below a secret's name in a table whose first line names the columns (RFC 4180)."""
    header, _, _ = text.partition("\n")
    separator = max(_SEPARATORS, key=header.count)
    names = header.split(separator)
    if not 2 <= len(names) <= 64 or not all(_CELL.fullmatch(name) for name in names):
        return []
    secret = [number for number, name in enumerate(names) if is_secret_name(name.strip())]
    spans, at = list[tuple[int, int]](), len(header) + 1
    for line in text[at:].split("\n") if secret else ():
        cells = line.split(separator)
        starts = [at]
        for cell in cells:
            starts.append(starts[-1] + len(cell) + 1)
        if len(cells) == len(names):
            spans += [
                (starts[number], starts[number] + len(cells[number].rstrip("\r")))
                for number in secret
                if cells[number].strip()
            ]
        at += len(line) + 1
    return spans
