"""The SQL of relays. Names are qualified; each statement stands for itself, as transaction poolers need it."""

from __future__ import annotations

from typing import Final

from ..drivers.statements import Statement

_S: Final = "asgi_datasource"

_COLUMNS: Final = "lane, seq, event_id, tenant, topic, key, data, data_bin, headers, created_at"
_READ: Final = (
    "o.lane, o.seq, o.event_id, o.tenant, o.topic, o.key, o.data::text, o.data_bin, o.headers::text, o.created_at"
)

# Membership

BEAT: Final = f"""
insert into {_S}.outbox_relay (owner, seen_until) values (%s, clock_timestamp() + make_interval(secs => %s))
on conflict (owner) do update set seen_until = excluded.seen_until
"""  # noqa: S608
FORGET_DEAD: Final = Statement(
    f"delete from {_S}.outbox_relay where seen_until < clock_timestamp() - interval '1 minute'"  # noqa: S608
)
RENEW: Final = f"""
update {_S}.outbox_lane set lease_until = clock_timestamp() + make_interval(secs => %s)
where owner = %s and lease_until > clock_timestamp() returning lane, epoch
"""  # noqa: S608
COUNT_RELAYS: Final = Statement(
    f"select count(*)::int from {_S}.outbox_relay where seen_until > clock_timestamp()"  # noqa: S608
)
CLAIM: Final = f"""
update {_S}.outbox_lane l
set owner = %s, epoch = l.epoch + 1, lease_until = clock_timestamp() + make_interval(secs => %s)
from (
    select lane from {_S}.outbox_lane where lease_until <= clock_timestamp()
    order by lane limit %s for update skip locked
) free
where l.lane = free.lane returning l.lane, l.epoch
"""  # noqa: S608
RELEASE: Final = f"""
update {_S}.outbox_lane set owner = null, lease_until = '-infinity' where owner = %s and lane = any(%s::smallint[])
"""  # noqa: S608
RELEASE_ALL: Final = f"update {_S}.outbox_lane set owner = null, lease_until = '-infinity' where owner = %s"  # noqa: S608
LEAVE: Final = f"delete from {_S}.outbox_relay where owner = %s"  # noqa: S608

# Reading

HAS_WORK: Final = Statement(
    f"select exists (select from {_S}.outbox) or exists (select from {_S}.outbox_held where state = 'retry')"  # noqa: S608
)
READ: Final = f"""
select {_READ} from unnest(%s::smallint[]) mine (lane)
cross join lateral (select * from {_S}.outbox o where o.lane = mine.lane order by o.seq limit %s) o
"""  # noqa: S608
READ_HELD: Final = f"""
select {_READ}, o.attempts from (
    select lane, tenant, key from {_S}.outbox_held
    where lane = any(%s::smallint[]) and state = 'retry' and next_at <= clock_timestamp()
    group by lane, tenant, key order by min(next_at) limit 20
) due cross join lateral (
    select * from {_S}.outbox_held o
    where o.lane = due.lane and o.key = due.key and o.tenant is not distinct from due.tenant and o.state <> 'dead'
    order by o.seq limit %s
) o
"""  # noqa: S608
HELD_GROUPS: Final = f"""
select lane, tenant, key,
    extract(epoch from min(next_at) filter (where state = 'retry') - clock_timestamp())::float8
from {_S}.outbox_held where lane = any(%s::smallint[]) and (state <> 'dead' or %s) group by lane, tenant, key
"""  # noqa: S608

# Acknowledging. `fence` names the lanes that are still this relay's, by their epochs.

_FENCE: Final = f"""
fence as (
    select l.lane from {_S}.outbox_lane l join unnest(%s::smallint[], %s::bigint[]) mine (lane, epoch)
    on l.lane = mine.lane and l.epoch = mine.epoch where l.owner = %s
)"""  # noqa: S608
ACKNOWLEDGE: Final = f"""
with {_FENCE}
delete from {_S}.outbox o using unnest(%s::smallint[], %s::bigint[]) done (lane, seq), fence
where fence.lane = done.lane and o.lane = done.lane and o.seq = done.seq
"""  # noqa: S608
ACKNOWLEDGE_AND_KEEP: Final = f"""
with {_FENCE}, gone as (
    delete from {_S}.outbox o using unnest(%s::smallint[], %s::bigint[]) done (lane, seq), fence
    where fence.lane = done.lane and o.lane = done.lane and o.seq = done.seq returning o.*
)
insert into {_S}.outbox_sent ({_COLUMNS}) select {_COLUMNS} from gone
"""  # noqa: S608
ACKNOWLEDGE_HELD: Final = ACKNOWLEDGE.replace(f"{_S}.outbox o", f"{_S}.outbox_held o")
ACKNOWLEDGE_HELD_AND_KEEP: Final = ACKNOWLEDGE_AND_KEEP.replace(f"{_S}.outbox o", f"{_S}.outbox_held o")

# Stepping aside

HOLD: Final = f"""
with {_FENCE}, gone as (
    delete from {_S}.outbox o using unnest(%s::smallint[], %s::bigint[]) aside (lane, seq), fence
    where fence.lane = aside.lane and o.lane = aside.lane and o.seq = aside.seq returning o.*
)
insert into {_S}.outbox_held ({_COLUMNS}, state) select {_COLUMNS}, 'waiting' from gone
"""  # noqa: S608
HOLD_KEYS: Final = f"""
with {_FENCE}, rest as (
    select o.lane, o.seq from unnest(%s::smallint[], %s::text[], %s::text[]) held (lane, tenant, key)
    join fence on fence.lane = held.lane
    join {_S}.outbox o on o.lane = held.lane and o.key = held.key and o.tenant is not distinct from held.tenant
    order by o.seq limit 5000
), gone as (
    delete from {_S}.outbox o using rest where o.lane = rest.lane and o.seq = rest.seq returning o.*
)
insert into {_S}.outbox_held ({_COLUMNS}, state) select {_COLUMNS}, 'waiting' from gone
"""  # noqa: S608
"""What lies behind a refused message of its key, so that other keys of the lane need not wait for it to be read."""
REFUSE: Final = f"""
with {_FENCE}
update {_S}.outbox_held o
set state = refused.state, attempts = refused.attempts, error = refused.error,
    next_at = case when refused.state = 'retry' then clock_timestamp() + make_interval(secs => refused.delay_s) end
from unnest(%s::smallint[], %s::bigint[], %s::text[], %s::int[], %s::float8[], %s::text[])
    refused (lane, seq, state, attempts, delay_s, error), fence
where fence.lane = refused.lane and o.lane = refused.lane and o.seq = refused.seq
"""  # noqa: S608
PROMOTE: Final = f"""
with {_FENCE}, head as (
    select o.lane, o.seq from unnest(%s::smallint[], %s::text[], %s::text[]) held (lane, tenant, key)
    join fence on fence.lane = held.lane
    cross join lateral (
        select * from {_S}.outbox_held o
        where o.lane = held.lane and o.key = held.key and o.tenant is not distinct from held.tenant
            and (o.state <> 'dead' or %s)
        order by o.seq limit 1
    ) o where o.state = 'waiting'
)
update {_S}.outbox_held o set state = 'retry', next_at = clock_timestamp() from head
where o.lane = head.lane and o.seq = head.seq
"""  # noqa: S608
"""The first message of a key that waits becomes the one that is tried next."""

# Watching

MEASURE: Final = Statement(
    f"""
select (select count(*) from (select from {_S}.outbox limit 100000) waiting)::int,
    (select extract(epoch from clock_timestamp() - min(first.created_at))
     from {_S}.outbox_lane l
     cross join lateral (select created_at from {_S}.outbox o where o.lane = l.lane order by seq limit 1) first
    )::float8,
    count(*) filter (where state <> 'dead')::int, count(*) filter (where state = 'dead')::int
from {_S}.outbox_held
"""  # noqa: S608
)
"""Backlog (counted up to 100,000), age of the oldest event in seconds, held, dead."""
TEND: Final = f"select {_S}.outbox_tend(make_interval(days => %s))"

# Operating

LANES_TAKEN: Final = Statement(
    f"select count(*)::int, count(distinct owner)::int from {_S}.outbox_lane where lease_until > clock_timestamp()"  # noqa: S608
)
DEAD: Final = f"""
select event_id, tenant, topic, key, attempts, error, created_at from {_S}.outbox_held
where state = 'dead' order by lane, seq limit %s
"""  # noqa: S608
REPLAY: Final = f"""
update {_S}.outbox_held set state = 'retry', attempts = 0, next_at = clock_timestamp()
where state = 'dead' and (%s::uuid[] is null or event_id = any(%s::uuid[])) returning event_id
"""  # noqa: S608
DISCARD: Final = f"""
delete from {_S}.outbox_held
where state = 'dead' and (%s::uuid[] is null or event_id = any(%s::uuid[])) returning event_id
"""  # noqa: S608
NOTIFY: Final = "select pg_notify(%s, '')"
