"""Run intake: `python -m services.intake`."""

from services.intake.app import build

build().run()
