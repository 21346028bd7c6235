"""Environment of the approval service; every duration carries its unit in the name."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from remit.identity_claims import TrustedIssuer
from remit.runtime.settings import ServiceSettings
from services.approval.decide import Limits


class ApprovalSettings(ServiceSettings):
    """Adds whose word on people counts, and how long people have."""

    oidc_issuers: list[TrustedIssuer] = Field(
        default_factory=list[TrustedIssuer],
        description='JSON list: [{"issuer": "https://idp.example", "client_ids": ["dashboard", "cli"]}].',
    )
    oidc_key_ttl_s: float = Field(default=3600.0, gt=0, description="How long an issuer's keys are believed unread.")
    oidc_refetch_s: float = Field(default=30.0, gt=0, description="Least time between refetches for unknown keys.")
    approval_timeout_s: float = Field(default=900.0, gt=0, description="Then the action is refused as expired.")
    approved_for_policy_s: float = Field(default=60.0, gt=0, description="Life of an approval given by policy.")
    approved_for_human_s: float = Field(default=300.0, gt=0, description="Life of an approval given by people.")
    block_for_s: float = Field(default=86_400.0, gt=0, description="How long a denial blocks the like of its action.")
    sweep_s: float = Field(default=5.0, gt=0, description="Pause between two sweeps over deadlines and budgets.")
    stop_poll_s: float = Field(default=1.0, gt=0, description="Age of the advisory copy of the stop rows.")

    def limits(self) -> Limits:
        """Return the durations that decisions need."""
        return Limits(
            ask_for=timedelta(seconds=self.approval_timeout_s),
            approved_for_policy=timedelta(seconds=self.approved_for_policy_s),
            approved_for_human=timedelta(seconds=self.approved_for_human_s),
        )
