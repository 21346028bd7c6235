"""The statements of `dashboard.queries`, by name, on the views and tables of schema `audit`.

`actions_all` has one row an action; `actions` leaves canaries out, so numbers about agents use it and screens of one action
do not. Tier is a number there and `T1`..`T4` on the screen.
"""

from __future__ import annotations

CURSOR = """
select epoch::text || ':' || approvals_seq::text as version, touched_at, last_seq as position from audit.cursor
"""
QUEUE = """
select action_id, round, tool || '.' || action as name, 'T' || tier as risk, agent_id, human, expires_at
from audit.actions_all
where approval_status = 'requested' and expires_at > now()
  and (cast(:human as text) is null or human = :human or approver_group && cast(:groups as text[]))
order by tier desc, expires_at limit 50
"""
ACTION = """
select action_id, round, remit_id, tool || '.' || action as name, 'T' || tier as risk, effect, environment, resource_id,
  agent_id, agent_version, session, human, args, args_digest, shown_digest, rationale, proposed_at, verdict, reason, detail,
  matched_policies as rule_ids, policy_version, bundle_version, unnamed_sinks, evaluated_at, approval_status,
  approver_group as approvers, quorum, votes, expires_at, approver, decided_at, coalesce(narrowed, false) as narrowed,
  grant_no, jti, tokenized_at, token_expires_at, executor, executed_at, executed_digest, effect_ok, outcome, match,
  result_digest, result_status, redacted_paths, scopes_requested, scopes_granted, scopes_used, terminal, refused_reason,
  last_event_at, flags
from audit.actions_all where action_id = :action_id
"""
HISTORY = """
with alike as (
  select action_id, approval_status, decided_at, args, shape_digest from audit.actions
  where agent_id = :agent_id and tool = :tool and action = :action and verdict = 'ask' and proposed_at >= :since
    and action_id <> :action_id
), previous as (
  select args, decided_at from alike where approval_status = 'approved' order by decided_at desc limit 1
)
select count(*) filter (where approval_status = 'approved') as approved,
  count(*) filter (where approval_status = 'denied') as denied,
  max(decided_at) filter (where approval_status = 'denied') as last_denied_at,
  (select args from previous) as previous_args,
  (select decided_at from previous) as previous_at,
  count(*) filter (where approval_status = 'requested' and shape_digest =
    (select shape_digest from audit.actions_all where action_id = :action_id)) as waiting_alike
from alike
"""
TOOL = "select summary, reversibility, owner from audit.tools where tool = :tool and action = :action"
REGISTRY = """
select tool || '.' || action as name, 'T' || tier as risk, effect, reversibility, environment, sinks from audit.tools
order by tool, action limit 500
"""
_REMIT = """
select r.remit_id, r.task, r.human, r.agent_id, r.granted_at, r.expires_at, r.max_calls,
  coalesce(sum(g.used), 0)::int as calls, count(g.*)::int as grants, count(g.*) filter (where g.used = 0)::int as unused,
  r.ended_at, r.ended_reason
from audit.remits r left join audit.grants g using (remit_id)
"""
REMIT = f"{_REMIT} where r.remit_id = :remit_id group by r.remit_id"
REMITS = f"""{_REMIT} where r.expires_at > now() and r.ended_at is null
  and (cast(:human as text) is null or r.human = :human) group by r.remit_id order by r.expires_at limit 100
"""
GRANTS = """
select grant_no, tool || '.' || action as name, arguments, max_calls, used from audit.grants
where remit_id = :remit_id order by grant_no limit 50
"""
TODAY = """
select count(*) as n, count(distinct agent_id) as agents, count(distinct human) as humans,
  count(*) filter (where verdict = 'allow') as by_rule, count(*) filter (where verdict = 'ask') as asked,
  count(*) filter (where verdict = 'deny') as blocked, count(*) filter (where match = 'match') as matched,
  count(*) filter (where match = 'differs') as differs, count(*) filter (where outcome = 'unknown') as unknown,
  percentile_cont(0.5) within group (order by wait_ms) as wait_p50_ms
from audit.actions where proposed_at >= :start and proposed_at < :stop
"""
VERDICTS = """
select date_bin(:bucket, proposed_at, timestamptz '2000-01-01 00:00:00+00') as at, verdict, count(*) as n
from audit.actions where proposed_at >= :start and proposed_at < :stop and verdict is not null
group by 1, 2 order by 1
"""
LATENCY = """
select stage.key as stage, count(*) as n, percentile_cont(0.5) within group (order by stage.value::numeric) as p50,
  percentile_cont(0.95) within group (order by stage.value::numeric) as p95
from audit.actions a cross join lateral jsonb_each_text(a.latency_ms) as stage
where a.proposed_at >= :start and a.proposed_at < :stop and stage.key = any(:stages)
group by 1
"""
TOP_TOOLS = """
select tool || '.' || action as name, agent_id, count(*) filter (where proposed_at >= :start) as n,
  count(*) filter (where proposed_at < :start) as before,
  (avg((outcome <> 'succeeded')::int) filter (where proposed_at >= :start))::float as not_ok
from audit.actions where proposed_at >= :prev and proposed_at < :stop
group by 1, 2 having count(*) filter (where proposed_at >= :start) > 0 order by n desc limit 100
"""
_FOUND = """
select action_id, remit_id, tool || '.' || action as name, agent_id, human, verdict, result_status, match, args_digest,
  proposed_at
from audit.actions_all
"""
_NEWEST = "order by proposed_at desc limit 25"
SEARCH = {
    "nothing": f"{_FOUND} {_NEWEST}",
    "action": f"{_FOUND} where action_id = :exact {_NEWEST}",
    "remit": f"{_FOUND} where remit_id = :exact {_NEWEST}",
    "jti": f"{_FOUND} where jti like :start {_NEWEST}",
    "agent": f"{_FOUND} where agent_id = :exact {_NEWEST}",
    "digest": f"{_FOUND} where args_digest like :digest_start {_NEWEST}",
    "text": f"""{_FOUND} where human ilike :anywhere or agent_id ilike :anywhere or tool || '.' || action ilike :anywhere
      or resource_id ilike :anywhere or action_id like :start or (:by_digest and args_digest like :digest_start) {_NEWEST}""",
}
EVENTS = """
select stream_seq as seq, ts as at, coalesce(type, 'unbelieved') as type, kid as signed_by,
  coalesce(detail->'voters'->>0, detail->>'by') as actor, encode(body_sha256, 'hex') as digest, verify_status
from audit.events where action_id = :action_id order by stream_seq limit 200
"""
SWITCHES = """
select kind, target, engaged_at, reason, by_iss || '|' || by_sub as "by" from audit.switches
where engaged_at is not null order by engaged_at desc limit 200
"""
AGENTS = """
select g.agent_id, g.model, count(r.*)::int as open_remits, g.last_seen, s.engaged_at is not null as is_stopped
from audit.agents g left join audit.switches s on s.kind = 'agent' and s.target = g.agent_id
left join audit.remits r on r.agent_id = g.agent_id and r.expires_at > now() and r.ended_at is null
group by 1, 2, 4, 5 order by is_stopped desc, g.last_seen desc nulls last limit 100
"""
