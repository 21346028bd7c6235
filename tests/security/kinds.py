"""The kinds of JWT that must exclude one another, as data (design, standards section 2.4; RFC 8725 section 3.12).

A kind without a signer in this build has a stand-in with the claims of its specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.forging import CLIENT, ISSUER, PROVIDER, STRANGER

ACTION_VERIFIERS = frozenset({"executor", "tool"})
PERSON_VERIFIERS = frozenset({"approval", "dashboard"})
AGENT = "spiffe://acme.example/agent/bookkeeper"
TYPES = frozenset({
    "at+jwt", "txntoken+jwt", "dpop+jwt", "arap-binding+jwt", "arap-approval+jwt", "secevent+jwt", "statuslist+jwt",
    "oauth-id-jag+jwt",
})  # fmt: skip
"""Every `typ` of the table that names a kind of its own."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row: how the kind is typed, what it says, and where alone it may be accepted."""

    name: str
    typ: str | None
    claims: dict[str, Any]
    accepted_at: frozenset[str] = frozenset()
    header: dict[str, Any] = field(default_factory=dict[str, Any])

    def timed(self, at: int) -> dict[str, Any]:
        """Return the claims as if minted now."""
        return {"iat": at, "nbf": at, "exp": at + 60} | self.claims


def kinds(action_claims: dict[str, Any]) -> list[Kind]:
    """Return every row; the action token says what the tokens service says."""
    act = {"iss": ISSUER, "sub": AGENT, "sub_profile": "ai_agent"}
    person = {"iss": PROVIDER, "sub": "dana", "aud": CLIENT, "nonce": "n", "roles": ["payments", "admin"]}
    workload = {"iss": "spiffe://acme.example", "sub": AGENT, "aud": ISSUER}
    call = action_claims["authorization_details"]
    return [
        Kind("action token", "at+jwt", action_claims, ACTION_VERIFIERS),
        Kind("agent access token", "at+jwt", {
            "iss": ISSUER, "sub": "usr_1", "client_id": "https://agents.example/bookkeeper", "act": act, "aud": f"{ISSUER}/mcp",
            "scope": "proposals:create tools:list", "jti": "at_1", "remit": {"remit_id": "rem_1"}, "cnf": action_claims["cnf"],
        }),
        Kind("transaction token", "txntoken+jwt", {
            "iss": ISSUER, "aud": "acme.example", "sub": "usr_1", "txn": "act_1", "scope": "tool:execute", "req_wl": AGENT,
            "tctx": {"tool": "bank", "action": "send_money"}, "rctx": {"act": act},
        }),
        Kind("DPoP proof", "dpop+jwt", {
            "jti": "p1", "htm": "POST", "htu": f"{ISSUER}/tools/bank", "ath": "x" * 43,
        }, header={"jwk": STRANGER["ES256"].jwk()}),
        Kind("denial binding", "arap-binding+jwt", {
            "iss": ISSUER, "aud": f"{ISSUER}/access-requests", "binding_hash": "x", "evaluation_id": "eval_1", "sub": "usr_1",
        }),
        Kind("approval state", "arap-approval+jwt", {
            "iss": ISSUER, "aud": f"{ISSUER}/policy", "approval_id": "apr_1", "approved_until": 2**31, "sub": "usr_1",
            "authorization_details": call,
        }),
        Kind("security event", "secevent+jwt", {
            "iss": PROVIDER, "aud": CLIENT, "jti": "e1", "sub": "dana", "txn": "t1",
            "events": {"https://schemas.openid.net/secevent/caep/event-type/session-revoked": {}},
        }),
        Kind("status list", "statuslist+jwt", {
            "iss": ISSUER, "sub": f"{ISSUER}/status/1", "ttl": 300, "status_list": {"bits": 1, "lst": "eNrbuRgAAhcBXQ"},
        }),
        Kind("ID-JAG", "oauth-id-jag+jwt", {
            "iss": PROVIDER, "sub": "dana", "aud": ISSUER, "client_id": CLIENT, "jti": "j1", "scope": "openid",
            "resource": f"{ISSUER}/mcp",
        }),
        Kind("JWT-SVID", None, workload),
        Kind("JWT-SVID typed", "JWT", workload),
        Kind("JWT-SVID as JOSE", "JOSE", workload),
        Kind("logout token", "logout+jwt", person | {
            "nonce": None, "jti": "l1", "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
        }),
        Kind("ID token", None, person, PERSON_VERIFIERS),
        Kind("ID token typed", "JWT", person, PERSON_VERIFIERS),
    ]  # fmt: skip
