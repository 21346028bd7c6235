"""The event contract as an AsyncAPI 3.0.0 document, computed from `pipeline.py` and `events.py`; for any language.

Source: AsyncAPI 3.0.0; design, standards section 1 (the version is kept on purpose).
"""

from __future__ import annotations

from typing import Any

from remit.events import ACTION_EVENTS, REMIT_EVENTS, Event, subject_of
from remit.pipeline import PIPELINE
from remit.proposal import Notice, Proposal

VERSION = "1.0.0"
"""Of the contract: rises with every new event version."""
HEADERS = {
    "type": "object",
    "required": ["Remit-Kid", "Remit-Sig", "Content-Type"],
    "properties": {
        "Remit-Kid": {
            "type": "string",
            "description": "Key that signed the event; the key file says which service owns it.",
        },
        "Remit-Sig": {"type": "string", "description": "Ed25519 over subject, NUL, raw body; base64url."},
        "Remit-Chain": {"type": "string", "description": "The action's earlier events with their signatures."},
        "Content-Type": {"const": "application/cloudevents+json"},
        "traceparent": {"type": "string"},
    },
}


def _key(event: type[Event]) -> str:
    return f"{'action' if event.stream == 'ACTIONS' else 'remit'}.{event.short}"


def _message(event: type[Event]) -> dict[str, Any]:
    return {
        "name": event.model_fields["type"].default,
        "summary": (event.__doc__ or "").strip(),
        "contentType": "application/cloudevents+json",
        "headers": {"$ref": "#/components/schemas/EventHeaders"},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": event.model_json_schema(),
        },
    }


def _plain(name: str, model: type[Proposal | Notice]) -> dict[str, Any]:
    schema = {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": model.model_json_schema()}
    return {"name": name, "contentType": "application/json", "payload": schema}


def _channel(address: str, message: str) -> dict[str, Any]:
    return {"address": address, "messages": {message: {"$ref": f"#/components/messages/{message}"}}}


def document() -> dict[str, Any]:
    """Return the whole document as JSON-ready values."""
    events = (*ACTION_EVENTS, *REMIT_EVENTS)
    channels = {_key(event): _channel(subject_of(event), _key(event)) for event in events}
    channels["propose"] = _channel("propose.{agent}", "proposal")
    channels["results"] = _channel("results.{agent}.{action_id}", "notice")
    operations: dict[str, Any] = {}
    for row in PIPELINE:
        for event in events:
            if row.name in event.writers:
                operations[f"{row.name}.send.{_key(event)}"] = _operation("send", _key(event), row.name)
            if any(subject_of(event) in consumption.subjects for consumption in row.consumes):
                operations[f"{row.name}.receive.{_key(event)}"] = _operation("receive", _key(event), row.name)
    operations["intake.receive.propose"] = _operation("receive", "propose", "intake")
    operations["intake.send.results"] = _operation("send", "results", "intake")
    messages = {_key(event): _message(event) for event in events}
    messages |= {"proposal": _plain("Proposal", Proposal), "notice": _plain("Notice", Notice)}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Remit event contract", "version": VERSION, "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/cloudevents+json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": {"EventHeaders": HEADERS}},
    }


def _operation(action: str, channel: str, service: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "tags": [{"name": service}]}
