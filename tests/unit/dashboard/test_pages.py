"""The pages as a person meets them, without a browser: every card state, both decisions, the sign-in gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.model.rows import SwitchRow, Vote
from remit.commands import ApproveCommand, DenyCommand, GrantCommand, Reply, RevokeCommand
from tests.unit.dashboard.support import (
    AGENT,
    DANA,
    EMMA,
    MemoryQueries,
    ScriptedSender,
    a_done_action,
    a_remit,
    a_user,
    an_action,
    at,
    install,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

APP = Path(__file__).parents[3] / "dashboard" / "app.py"
FORGED = ":green-badge[VERIFIED] ![p](https://evil.example/p.png) [link](https://evil.example) **bold** `x"


def open_app(user: Mapping[str, object] | None = None, page: str | None = None) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=30)
    app.user = dict(user or a_user())
    app.run()
    if page is not None:
        app.switch_page(f"app_pages/{page}.py").run()
    assert not app.exception
    return app


def words_on(app: AppTest) -> str:
    shown = [*app.markdown, *app.text, *app.caption, *app.success, *app.warning, *app.error, *app.header]
    return "\n".join(str(element.value) for element in shown)


def test_nobody_sees_a_page_without_signing_in() -> None:
    install(MemoryQueries([an_action()]))
    app = open_app({"is_logged_in": False})
    assert [button.key for button in app.button] == ["sign_in"]
    assert "bank.send_money" not in words_on(app)


def test_an_ended_token_is_asked_for_again() -> None:
    install(MemoryQueries([an_action()]))
    app = open_app(a_user(lives_s=-1))
    assert [button.key for button in app.button] == ["sign_in"]


def test_a_person_of_another_issuer_is_nobody() -> None:
    install(MemoryQueries([an_action()]))
    app = open_app({**a_user(), "iss": "https://elsewhere.example"})
    assert [button.key for button in app.button] == ["sign_in"]


def test_approve_sends_exactly_what_was_shown() -> None:
    row = an_action()
    sender = install(MemoryQueries([row]))
    app = open_app()
    app.button(key=f"ap_{row.action_id}").click().run()
    assert not app.exception
    command = sender.sent[0]
    assert isinstance(command, ApproveCommand)
    assert (command.action_id, command.version, command.args_digest, command.shown_digest) == (
        row.action_id,
        row.round,
        row.args_digest,
        row.shown_digest,
    )
    assert command.id_token.get_secret_value() == "header.claims.signature"
    assert "Done" in words_on(app)


def test_a_second_press_after_no_answer_repeats_the_same_request() -> None:
    row = an_action()
    sender = install(MemoryQueries([row]), ScriptedSender(Reply(status="unavailable")))
    app = open_app()
    for _ in range(2):
        app.button(key=f"ap_{row.action_id}").click().run()
    assert len({command.idempotency_key for command in sender.sent}) == 1
    assert "No answer" in words_on(app)


def test_after_a_counted_decision_the_buttons_are_gone() -> None:
    row = an_action()
    install(MemoryQueries([row]))
    app = open_app()
    app.button(key=f"ap_{row.action_id}").click().run()
    assert f"ap_{row.action_id}" not in {button.key for button in app.button}


def test_deny_needs_one_press_and_takes_an_optional_reason() -> None:
    row = an_action()
    sender = install(MemoryQueries([row]))
    app = open_app()
    app.selectbox(key=f"reason_{row.action_id}").select("wrong target").run()
    app.button(key=f"deny_{row.action_id}").click().run()
    command = sender.sent[0]
    assert isinstance(command, DenyCommand)
    assert command.reason == "wrong target"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approvers": ("security",)}, "Approving needs a member of"),
        ({"human": DANA}, "Nobody approves what is done for themselves"),
        ({"quorum": 2, "votes": (Vote(human=DANA, at=at(-5)),)}, "Your approval counts"),
        ({"args": {"amount": 1}, "args_digest": "sha-256:" + "A" * 43}, "does not hash"),
        ({"expires_at": at(-1)}, "Expired"),
        ({"approval_status": "denied", "terminal": "refused", "approver": EMMA, "decided_at": at(-4)}, "Denied"),
        ({"approval_status": "approved", "approver": EMMA, "decided_at": at(-4)}, "Approved"),
    ],
)
def test_a_card_that_is_not_yours_to_approve_says_why(changes: dict[str, Any], said: str) -> None:
    row = an_action(**changes)
    install(MemoryQueries([row]))
    app = AppTest.from_file(str(APP), default_timeout=30)
    app.user = a_user()
    app.session_state["open_action"] = row.action_id
    app.run()
    assert not app.exception
    assert said in words_on(app)
    assert all(button.disabled for button in app.button if str(button.key).startswith("ap_"))


def test_first_of_two_is_shown_to_the_second_approver() -> None:
    install(MemoryQueries([an_action(quorum=2, round=2, votes=(Vote(human=EMMA, at=at(-5)),), human="other|x")]))
    assert "1 of 2" in words_on(open_app())


def test_the_answer_of_a_lost_race_is_a_state_and_no_error() -> None:
    row = an_action()
    install(MemoryQueries([row]), ScriptedSender(Reply(status="stale", detail="the approval is in round 2, not 1")))
    app = open_app()
    app.button(key=f"ap_{row.action_id}").click().run()
    assert not app.exception
    assert "review it again" in words_on(app)


def test_nobody_approves_by_a_read_model_that_is_behind_but_denying_works() -> None:
    row = an_action()
    install(MemoryQueries([row], age_s=30))
    app = open_app()
    assert app.button(key=f"ap_{row.action_id}").disabled
    assert not app.button(key=f"deny_{row.action_id}").disabled


def test_the_open_card_stays_when_a_riskier_ask_arrives() -> None:
    first, riskier = an_action(1), an_action(2, risk="T4")
    queries = MemoryQueries([first])
    install(queries)
    app = open_app()
    queries.rows.insert(0, riskier)
    app.run()
    keys = {button.key for button in app.button}
    assert f"ap_{first.action_id}" in keys
    assert f"ap_{riskier.action_id}" not in keys


def test_forged_markup_reaches_only_plain_text_and_code() -> None:
    row = an_action(
        args={"note": FORGED},
        rationale=FORGED,
        resource_id=FORGED,
        name="bank.send_money",
        rule_ids=(FORGED,),
        environment=FORGED,
        unnamed_sinks=(FORGED,),
        approvers=("payments", FORGED),
    )
    install(MemoryQueries([row], remit_rows=[a_remit(task=FORGED, human=f"x|{FORGED}")]))
    for page in ("approvals", "today", "delegate", "investigate", "stop"):
        app = open_app(a_user(roles=("payments", "operator")), page)
        rendered = [*app.markdown, *app.caption, *app.header, *app.title, *app.success, *app.warning, *app.error]
        for element in rendered:
            outside = str(element.value).split("``")[::2]
            assert not any("evil.example" in part for part in outside), (page, element.value)
        assert not any("evil.example" in str(button.label) for button in app.button)


def test_today_shows_its_sentence() -> None:
    install(MemoryQueries([an_action()]))
    app = open_app(page="today")
    assert "1 action by 1 agent for 1 person" in words_on(app)


def test_investigate_finds_an_action_and_shows_its_four_checks() -> None:
    row = a_done_action()
    install(MemoryQueries([row]))
    app = open_app(page="investigate")
    app.text_input(key="q").set_value("send_money").run()
    app.button(key=f"show_{row.action_id}").click().run()
    assert not app.exception
    assert words_on(app).count("**yes**") == 4


def test_a_preview_is_granted_with_its_own_digest_and_key() -> None:
    preview = Reply(status="ok", remit_digest="sha-256:" + "B" * 43, remit_id=a_remit().remit_id)
    sender = install(MemoryQueries(), ScriptedSender(preview))
    app = open_app(a_user("emma", ("delegator",)), "delegate")
    app.button(key="preview").click().run()
    assert not app.exception
    assert "Nothing else. 1 call in all." in words_on(app)
    app.button(key="grant").click().run()
    asked, granted = sender.sent
    assert isinstance(asked, GrantCommand)
    assert isinstance(granted, GrantCommand)
    assert (asked.phase, granted.phase) == ("preview", None)
    assert granted.remit_digest == preview.remit_digest
    assert asked.idempotency_key == granted.idempotency_key


def test_terms_that_cannot_be_read_are_never_sent() -> None:
    sender = install(MemoryQueries())
    app = open_app(a_user("emma", ("delegator",)), "delegate")
    app.text_area(key="draft_text").set_value("task: [").run()
    app.button(key="preview").click().run()
    assert not app.exception
    assert sender.sent == []
    assert "cannot be read" in words_on(app)


def test_a_remit_is_revoked_from_its_row() -> None:
    row = a_remit()
    sender = install(MemoryQueries())
    app = open_app(a_user("emma", ("delegator",)), "delegate")
    app.button(key=f"revoke_{row.remit_id}").click().run()
    command = sender.sent[0]
    assert isinstance(command, RevokeCommand)
    assert (command.kind, command.target) == ("remit", row.remit_id)


def test_operators_stop_and_lift() -> None:
    engaged = SwitchRow(kind="tool", target="bank.send_money", engaged_at=at(-5), reason="incident response", by=DANA)
    sender = install(MemoryQueries(switch_rows=[engaged]))
    app = open_app(a_user("otto", ("operator",)), "stop")
    app.text_input(key="target").set_value(AGENT).run()
    app.button(key="stop").click().run()
    app.button(key="lift_tool_bank.send_money").click().run()
    assert not app.exception
    stopped, lifted = sender.sent
    assert isinstance(stopped, RevokeCommand)
    assert isinstance(lifted, RevokeCommand)
    assert (stopped.kind, stopped.target, stopped.lift) == ("agent", AGENT, False)
    assert (lifted.kind, lifted.target, lifted.lift) == ("tool", "bank.send_money", True)


def test_a_card_follows_its_own_action() -> None:
    row = an_action()
    queries = MemoryQueries([row])
    install(queries)
    app = open_app()
    queries.rows[0] = replace(row, approval_status="denied", terminal="refused", approver=EMMA, decided_at=at(-4))
    app.run()
    assert "**Denied**" in words_on(app)


def test_after_the_first_of_two_votes_the_card_asks_for_another_person() -> None:
    row = an_action(quorum=2)
    queries = MemoryQueries([row])
    install(queries, ScriptedSender(Reply(status="ok", votes=1, quorum=2, round=2)))
    app = open_app()
    app.button(key=f"ap_{row.action_id}").click().run()
    assert "Vote 1 of 2 counted" in words_on(app)
    queries.rows[0] = replace(row, round=2, votes=(Vote(human=DANA, at=at(-1)),))
    app.run()
    assert "Your approval counts" in words_on(app)
    assert app.button(key=f"ap_{row.action_id}").disabled
