"""The door for people: verify who speaks, then let the command's own module decide.

The client's bus credential only opens the door; authority is the person's ID token, never logged or stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from remit.commands import (
    ApplyCommand,
    ApproveCommand,
    Command,
    CommandError,
    DenyCommand,
    GrantCommand,
    Reply,
    ResolveCommand,
    RevokeCommand,
    parse_command,
)
from remit.errors import BundleError, TransientError
from remit.identity_claims import IdentityError
from services.approval.answers import forbidden, invalid, unavailable
from services.approval.authority import human_target
from services.approval.voting import Voter

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.identity import IdTokenVerifier
    from remit.runtime.delivery import Inbound
    from services.approval.grants import Grants
    from services.approval.registry import Registry
    from services.approval.resolution import Resolutions
    from services.approval.revocations import Revocations
    from services.approval.stop_store import StopStore
    from services.approval.votes import Votes

log = structlog.get_logger("approval.human")


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanCommands:
    """Everything people may ask of approval."""

    clock: Callable[[], datetime]
    verifier: IdTokenVerifier
    switches: StopStore
    votes: Votes
    grants: Grants
    revocations: Revocations
    registry: Registry
    resolutions: Resolutions

    async def answer(self, inbound: Inbound) -> bytes:
        """Return the reply to one request on `human.<command>`."""
        name = inbound.subject.rpartition(".")[2]
        reply = await self._reply(name, inbound.body)
        log.info("command answered", command=name[:20], status=reply.status)
        return reply.to_wire()

    async def _reply(self, name: str, body: bytes) -> Reply:
        try:
            command = parse_command(name, body)
            person = await self.verifier.verify(command.id_token.get_secret_value(), now=self.clock())
            voter = Voter(person=person, idempotency_key=command.idempotency_key)
            return await self._stopped(command, voter) or await self._dispatch(command, voter)
        except CommandError as error:
            return invalid(error.field, str(error))
        except IdentityError as error:
            return Reply(status="login_needed", detail=str(error))
        except (TransientError, BundleError) as error:
            return unavailable(str(error))

    async def _stopped(self, command: Command, voter: Voter) -> Reply | None:
        """Return the answer to a person whose own switch is engaged: they may take back, and nothing else."""
        if isinstance(command, RevokeCommand) and not command.lift:
            return None
        if not await self.switches.is_engaged(("human", human_target(voter.person.human))):
            return None
        return forbidden("your own switch is engaged, so you may only revoke; another operator must lift it")

    async def _dispatch(self, command: Command, voter: Voter) -> Reply:
        match command:
            case ApproveCommand():
                return await self.votes.approve(command, voter)
            case DenyCommand():
                return await self.votes.deny(command, voter)
            case GrantCommand():
                return await self.grants.grant(command, voter)
            case RevokeCommand():
                return await self.revocations.revoke(command, voter)
            case ApplyCommand():
                return await self.registry.apply(command, voter)
            case ResolveCommand():
                return await self.resolutions.resolve(command, voter)
            case _:
                return invalid("", "this command is not answered here")
