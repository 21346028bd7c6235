"""Environment of intake."""

from __future__ import annotations

from remit.runtime.settings import ServiceSettings


class IntakeSettings(ServiceSettings):
    """Intake needs nothing beyond what every service needs; quotas and schemas come from the registry bundle."""
