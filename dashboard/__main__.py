"""Starts the dashboard: `python -m dashboard`, configured by the environment (see `dashboard.settings`)."""

from __future__ import annotations

from dashboard.server import main

main()
