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
        description='JSON list: [{"issuer": "https://idp.example", "client_ids": ["dashboard", "cli"]}]; '
        "with more than one issuer each needs allowed_roles.",
    )
    oidc_key_ttl_s: float = Field(default=3600.0, gt=0, description="How long an issuer's keys are believed unread.")
    oidc_refetch_s: float = Field(default=30.0, gt=0, description="Least time between refetches for unknown keys.")
    approval_timeout_s: float = Field(default=900.0, gt=0, description="Then the action is refused as expired.")
    approved_for_policy_s: float = Field(default=60.0, gt=0, description="Life of an approval given by policy.")
    approved_for_human_s: float = Field(default=300.0, gt=0, description="Life of an approval given by people.")
    t4_quorum: int = Field(default=2, ge=1, le=9, description="Least number of people who must approve at T4.")
    block_for_s: float = Field(default=86_400.0, gt=0, description="How long a denial blocks the like of its action.")
    sweep_s: float = Field(default=5.0, gt=0, description="Pause between two sweeps over deadlines and budgets.")
    stop_poll_s: float = Field(default=1.0, gt=0, description="Age of the advisory copy of the stop rows.")
    outbox_s: float = Field(default=1.0, gt=0, description="Pause between two looks for revocations to record.")
    outbox_after_s: float = Field(default=2.0, ge=0, description="Then a revocation's command no longer records it.")

    def limits(self) -> Limits:
        """Return the bounds that decisions need."""
        return Limits(
            ask_for=timedelta(seconds=self.approval_timeout_s),
            approved_for_policy=timedelta(seconds=self.approved_for_policy_s),
            approved_for_human=timedelta(seconds=self.approved_for_human_s),
            t4_quorum=self.t4_quorum,
        )
