"""`remit`: the command line for people who delegate, approve, operate and audit."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from remit.cli.program import app  # noqa: PLC0415  (an agent's install has none of its packages)
    except ModuleNotFoundError as error:
        sys.exit(f"remit: the command line needs {error.name}; install it with: pip install 'remit[cli]'")
    app()


if __name__ == "__main__":
    main()
