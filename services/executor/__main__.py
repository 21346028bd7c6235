"""Runs the executor: `python -m services.executor`."""

from services.executor.app import build

build().run()
