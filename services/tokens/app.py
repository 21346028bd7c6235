"""Composition root of tokens."""

from __future__ import annotations

from functools import partial

from remit.clock import now
from remit.events import ActionApproved, ActionRefused, ActionTokenized
from remit.runtime.service import Service
from services.tokens.handlers import TokensHandlers
from services.tokens.key_file import KeyFile
from services.tokens.metadata import routes
from services.tokens.minting import Executor, Minter
from services.tokens.settings import TokensSettings


def build(settings: TokensSettings | None = None) -> Service:
    """Return the service, ready to run."""
    settings = settings or TokensSettings()  # pyright: ignore[reportCallIssue]  (keys_dir comes from the environment)
    service = Service("tokens", settings)
    keys = KeyFile(settings.keys_dir)
    environment = service.keys.environment
    executor = Executor(environment.executor_x25519, environment.executor_jkt)
    handlers = TokensHandlers(
        clock=now,
        tenant=settings.tenant,
        bundle=service.bundles.current,
        read_remit=service.ledger.read_remit,
        minter=Minter(issuer=settings.token_issuer, executor=executor, keys=keys.ring),
        ledger=service.ledger,
        lifetime_s=settings.token_lifetime_s,
    )
    service.on_action(
        ActionApproved, handlers.on_action_approved, emits=(ActionTokenized, ActionRefused), verify_chain=True
    )
    service.answer("redrive.tokens", handlers.on_redrive)
    service.background("key file", partial(keys.watch, settings.key_reload_s))
    public_url = settings.public_url or settings.token_issuer
    service.routes(*routes(keys=keys.ring, issuer=settings.token_issuer, public_url=public_url))
    return service
