"""Intake: the one door for agents' requests, and the only voice back to them.

Consumes INTAKE `in.propose.*` (durable `intake`) and every event an agent hears about from ACTIONS (durable `results`).
Publishes `action.*.proposed` and core `results.<agent>.<action_id>`, answers `status.*.*`; refusals go to `dlq.intake`.
State: none. Secrets: its event signing key. If it is down: proposals wait in INTAKE, agents get back-pressure.
"""
