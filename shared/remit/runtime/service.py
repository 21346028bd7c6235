"""The shell every service runs in: connect, bind, watch, serve health, stop gracefully. Services only fill it in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from remit.errors import ConfigurationError, TransientError
from remit.events import ActionRefused, Event, Refused, subject_of
from remit.pipeline import BY_NAME, Consumption
from remit.reasons import Reason, Stage
from remit.runtime.bundles import BundleReader, read_value
from remit.runtime.bus import Bus
from remit.runtime.delivery import Engine
from remit.runtime.keys import ServiceKeys, load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.letters import MAX_BODY
from remit.runtime.probes import Probes
from remit.runtime.requests import Admission, Answer, Answerer
from remit.runtime.runner import Runner
from remit.runtime.subscriptions import Pull, announce, build_broker, subscribe
from remit.runtime.telemetry import Telemetry
from remit.runtime.watchdog import Exit, Vitals, die
from remit.runtime.wire_guard import guard
from remit.runtime.work import ActionHandler, ActionWork, EventHandler, RawHandler, event_work, raw_work

if TYPE_CHECKING:
    import asyncpg
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from starlette.routing import BaseRoute

    from remit.fold import ActionState
    from remit.runtime.inbound import Inbound
    from remit.runtime.settings import ServiceSettings

log = structlog.get_logger("remit.service")

LATE_ANSWER = re.compile(r'permissions violation for publish to "(_r_|_ibx)\.', re.IGNORECASE)
"""Publishing to somebody else's inbox is allowed once per request and for a while only (`allow_responses`)."""
Factory = Callable[[], Coroutine[Any, Any, None]]


def _refuse_unprocessable(service: str) -> Callable[[ActionState], Draft | None]:
    def draft(state: ActionState) -> Draft | None:
        if state.last is None:
            return None
        said = state.last.data
        data = Refused(
            txn=said.txn, remit_id=said.remit_id, principal=said.principal, action=said.action,
            stage=Stage(service), reason=Reason.UNPROCESSABLE,
        )  # fmt: skip
        return Draft(event=ActionRefused, data=data)

    return draft


class Service:
    """A composition target: `app.py` adds handlers, `run` does the rest.

    `ledger`, `bundles`, `bus` and `engine` exist from construction on; they work once `run` has connected.
    """

    def __init__(self, name: str, settings: ServiceSettings) -> None:
        """Load keys, prepare the broker; nothing is connected yet.

        Raises:
            ConfigurationError: a key is missing or the key file is not signed by the environment's root.

        """
        self.name, self.settings = name, settings
        self.replica = settings.replica or name
        self.row = BY_NAME[name]
        self.keys: ServiceKeys = load_service_keys(settings.keys_dir, name)
        self.telemetry, self.vitals = Telemetry(name), Vitals()
        self.broker = build_broker(
            settings, service=name, nkey_seed=self.keys.nkey_seed, error_cb=self._on_error, closed_cb=self._on_closed
        )
        self._client: Client | None = None
        self.bus = Bus(self)
        self.trust, self.signer = self.keys.trust, self.keys.signer
        self.trust.on_refused = self._on_trust_refused
        self.ledger = Ledger(
            bus=self.bus, signer=self.signer, trust=self.trust, tenant=settings.tenant, telemetry=self.telemetry
        )
        self.bundles = BundleReader(
            bus=self.bus, trust=self.trust, telemetry=self.telemetry,
            poll_s=settings.bundle_poll_s, stale_s=settings.bundle_stale_s,
        )  # fmt: skip
        self.engine = Engine(service=name, bus=self.bus, telemetry=self.telemetry, vitals=self.vitals)
        self.probes = Probes(service=self, workers=settings.workers)
        self.http_routes: list[BaseRoute] = []
        self.tasks: list[tuple[str, Factory]] = [
            ("heartbeats", self.engine.heartbeats),
            ("key file", self.trust.watch),
            ("probes", self.probes.run),
        ]
        self.start_hooks: list[Factory] = []
        self.stop_hooks: list[Factory] = []
        self.answered: list[Answer] = []
        self.stopping = asyncio.Event()

    # What app.py calls

    def on_action(
        self,
        event: type[Event],
        handler: ActionHandler,
        *,
        emits: tuple[type[Event], ...],
        verify_chain: bool = False,
        unprocessable: Callable[[ActionState], Draft | None] | None = None,
    ) -> None:
        """Consume one event type by the service's own durable; `handler` gets the whole action and returns a draft or None.

        `verify_chain` checks every predecessor's signature: required where authority is made (tokens, executor).
        `unprocessable` is the service's terminal event, `refused` where it may write that.

        Raises:
            ConfigurationError: the row lists no such consumer, or there is no terminal event this service may write.

        """
        if unprocessable is None and self.name not in ActionRefused.writers:
            raise ConfigurationError(f"{self.name} may not write {ActionRefused.short}; give `unprocessable`")
        consumption = self._consumption(subject_of(event))
        give_up = unprocessable or _refuse_unprocessable(self.name)
        work = ActionWork(
            service=self.name, ledger=self.ledger, telemetry=self.telemetry,
            handler=handler, unprocessable=give_up, verify_chain=verify_chain,
        )  # fmt: skip
        self._subscribe(consumption, subject_of(event), work)
        announce(self.broker, emits)

    def on_events(
        self, events: tuple[type[Event], ...], handler: EventHandler, *, publishes: tuple[str, ...] = ()
    ) -> None:
        """Consume several event types by one durable, each event alone."""
        subjects = tuple(subject_of(event) for event in events)
        consumption = self._consumption(*subjects)
        self._subscribe(consumption, subjects[0], event_work(handler, self.trust))
        for subject in publishes:
            self.broker.publisher(subject)

    def on_raw(
        self,
        *,
        stream: str,
        handler: RawHandler,
        emits: tuple[type[Event], ...] = (),
        give_up: RawHandler | None = None,
    ) -> None:
        """Consume a stream whose messages are not events; acknowledged when `handler` returns.

        `give_up` gets the last delivery of a message that `handler` could not take, in place of a dead letter.
        """
        consumption = next(c for c in self.row.consumes if c.stream == stream)
        self._subscribe(consumption, consumption.subjects[0], raw_work(handler, give_up))
        announce(self.broker, emits)

    def answer(self, subject: str, handler: Answerer, *, admit: Admission | None = None) -> None:
        """Answer core requests, one replica each; returning None answers nothing, what `admit` refuses is dropped."""
        self.answered.append(Answer(subject, handler, admit))

    def background(self, name: str, factory: Factory) -> None:
        """Run a task as long as the service; when it ends or fails, the process ends."""
        self.tasks.append((name, factory))

    def routes(self, *routes: BaseRoute) -> None:
        """Serve further routes beside /livez, /readyz and /metrics."""
        self.http_routes.extend(routes)

    def on_start(self, factory: Factory) -> None:
        """Run before the first message, in order of registration."""
        self.start_hooks.append(factory)

    def on_stop(self, factory: Factory) -> None:
        """Run after the last message."""
        self.stop_hooks.append(factory)

    # What handlers may use

    @property
    def client(self) -> Client:
        """The connected NATS client."""
        if self._client is None:
            raise TransientError("not connected to NATS yet")
        return self._client

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,  # noqa: ASYNC109  (nats-py's own parameter)
        headers: dict[str, str] | None,
    ) -> Msg:
        """Forward to the connected client; the bus is built before the connection."""
        return await self.client.request(subject, payload, timeout=timeout, headers=headers)

    async def publish_core(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Publish without storage: best effort, as results to agents are."""
        await self.client.publish(subject, body, headers=headers or {})

    async def dead_letter(self, inbound: Inbound, *, code: str, detail: str, keep: int = MAX_BODY) -> None:
        """Keep evidence of a message, or of its first `keep` bytes, on this service's dead-letter subject."""
        await self.engine.dead_letter(inbound, code=code, detail=detail, keep=keep)

    async def kv_get(self, key: str) -> tuple[bytes, int] | None:
        """Return value and revision of a REGISTRY key, or None."""
        return await read_value(self.bus, key)

    async def kv_put(self, key: str, value: bytes, *, expected_revision: int) -> int:
        """Write a REGISTRY key if its revision still is the expected one (0: absent); return the new revision.

        Raises:
            ConflictError: somebody else wrote first.

        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected_revision)}
        return (await self.bus.append(f"$KV.REGISTRY.{key}", value, headers)).seq

    async def require_postgres(self, *, max_size: int = 16, keeps_state: bool = False) -> asyncpg.Pool[asyncpg.Record]:
        """Open a pool, waiting for Postgres as long as it takes and saying so.

        Raises:
            ConfigurationError: no DATABASE_URL is set.

        """
        from remit.runtime.postgres import answers, open_pool  # noqa: PLC0415  (asyncpg is installed only where it is used)

        if not self.settings.database_url:
            raise ConfigurationError(f"{self.name} needs DATABASE_URL (postgresql://user:password@host:port/database)")
        pool = await open_pool(
            self.settings.database_url, name=self.replica, max_size=max_size, keeps_state=keeps_state
        )
        self.probes.watch_postgres(lambda: answers(pool))
        return pool

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; returns after a graceful stop, exits with a code of `Exit` otherwise."""
        Runner(self).run()

    def attach(self, client: Client) -> None:
        """Take the connected client; everything built on `bus` works from here on."""
        guard(client)
        self._client = client

    @property
    def is_connected(self) -> bool:
        """Whether the broker answers right now."""
        return self._client is not None and self._client.is_connected

    def _consumption(self, *subjects: str) -> Consumption:
        for consumption in self.row.consumes:
            if consumption.subjects == subjects:
                return consumption
        raise ConfigurationError(
            f"{self.name} consumes {', '.join(subjects)}, which its row of pipeline.py does not list"
        )

    def _subscribe(self, consumption: Consumption, subject: str, work: RawHandler) -> None:
        pull = Pull(consumption=consumption, subject=subject, workers=self.settings.workers)
        subscribe(self.broker, pull, service=self.name, engine=self.engine, work=work)

    # Connection events

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if self.probes.started and LATE_ANSWER.search(text):
            # Whoever asks may cause this, so it must not end the service.
            self.telemetry.alarms.labels(kind="answer_refused").inc()
            log.warning("the broker refused an answer; it came too late", detail=text)
            return
        if "permissions violation" in text.lower():
            # A refused publish does not raise and a refused subscribe looks like an empty queue: nothing would ever work.
            die(Exit.PERMISSIONS, text.replace('"', "'"))
        log.warning("NATS connection", error=text or type(error).__name__)

    def _on_trust_refused(self, detail: str) -> None:
        self.telemetry.alarms.labels(kind="trust_refused").inc()
        log.error("the changed key file is not believed, the last one stays in force", detail=detail)

    async def _on_closed(self) -> None:
        if not self.stopping.is_set() and self._client is not None:
            die(Exit.NOT_CONNECTED, "the NATS client closed for ever")
