"""Registry and policies compiled, and the one evaluation that policy, tokens and back-tests share.

What a policy sees in `context` is documented in `remit.evaluation.context`; it is a contract.
"""

from remit.evaluation.actions import CompiledAction
from remit.evaluation.approvals import ApprovalFact, Requirement
from remit.evaluation.bundles import CompiledBundle
from remit.evaluation.decision import Evaluation, Facts, denied, evaluate, grantable
from remit.evaluation.grants import CompiledGrant, compile_grants
from remit.evaluation.proposals import disowned, read_proposal
from remit.evaluation.schemas import SchemaRefusedError, compile_schema, violation

__all__ = [
    "ApprovalFact",
    "CompiledAction",
    "CompiledBundle",
    "CompiledGrant",
    "Evaluation",
    "Facts",
    "Requirement",
    "SchemaRefusedError",
    "compile_grants",
    "compile_schema",
    "denied",
    "disowned",
    "evaluate",
    "grantable",
    "read_proposal",
    "violation",
]
