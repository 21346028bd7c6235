"""Texts that would do something if anybody took them for more than text: shells, templates, queries, markup, paths, terminals."""

from __future__ import annotations

SHELL = (
    "; touch {mark}",
    "$(touch {mark})",
    "`touch {mark}`",
    "| touch {mark} #",
    "&& touch {mark}",
    "\n touch {mark}\n",
)
PYTHON = (
    "__import__('os').system('touch {mark}')",
    "!!python/object/apply:os.system ['touch {mark}']",
    "cos\nsystem\n(S'touch {mark}'\ntR.",
)
TEMPLATES = ("{{{{7*7}}}}", "${{7*7}}", "<%= 7*7 %>", "#{{7*7}}", "{{text.__class__.__mro__}}", "%(text)s %n%n%n")
REFERENCES = (
    '{{"$ref": "{url}"}}',
    "<!DOCTYPE x SYSTEM '{url}'>",
    "{url}",
    "file:///etc/passwd",
    "${{jndi:ldap://{host}/x}}",
)
QUERIES = ("'; DROP TABLE control.execution; --", "1 OR 1=1", "\\'); SELECT pg_sleep(9); --", '{{"$gt": ""}}')
MARKUP = ("<script>alert(1)</script>", "![x]({url})", '"><img src=x onerror=alert(1)>', "]]>")
TERMINAL = ("\x1b]0;owned\x07", "\x1b[2J", "user\u202egnp.exe", "zero\u200bwidth", "p\u0430ypal", "\ufeff")
WIRE = (
    "a\r\nX-Injected: 1",
    "\r\nPUB action.x.approved 2\r\n{{}}\r\n",
    "../../../../etc/passwd",
    "%2e%2e%2f",
    "\x7f",
    "a" * 1500,
)


def corpus(mark: str, url: str) -> list[str]:
    """Return every text; `mark` is a file that no text may create, `url` a place that no text may reach."""
    groups = (SHELL, PYTHON, TEMPLATES, REFERENCES, QUERIES, MARKUP, TERMINAL, WIRE)
    host = url.split("/")[2]
    return [text.format(mark=mark, url=url, host=host) for group in groups for text in group]
