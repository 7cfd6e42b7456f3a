-- The tables of the outbox and the inbox, once in each database. Every name is qualified. A later layout is a later file.

-- An event is inserted in its transaction and deleted once it is delivered; it is never updated. `lane` spreads the keys
-- over 32 lanes, each of which one relay owns at a time.
create table asgi_datasource.outbox (
    lane smallint generated always as ((hashtextextended(key, 0) & 31)::smallint) stored,
    seq bigint generated always as identity,
    event_id uuid not null,
    tenant text,
    topic text not null,
    key text not null,
    data json,
    data_bin bytea,
    headers json,
    created_at timestamptz not null default clock_timestamp(),
    primary key (lane, seq)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 10000
);

-- `epoch` grows with each change of the owner: a relay that has lost a lane acknowledges nothing in it any more.
create table asgi_datasource.outbox_lane (
    lane smallint primary key,
    owner uuid,
    epoch bigint not null default 0,
    lease_until timestamptz not null default '-infinity'
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

insert into asgi_datasource.outbox_lane (lane) select generate_series(0, 31);

-- The relays that work on this database, by which each knows its share of the lanes.
create table asgi_datasource.outbox_relay (
    owner uuid primary key,
    seen_until timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Events of keys that wait for one of theirs which was refused. state: retry (the first of its key), waiting, dead.
create table asgi_datasource.outbox_held (
    lane smallint not null,
    seq bigint not null,
    event_id uuid not null,
    tenant text,
    topic text not null,
    key text not null,
    data json,
    data_bin bytea,
    headers json,
    created_at timestamptz not null,
    state text not null check (state in ('retry', 'waiting', 'dead')),
    attempts int not null default 0,
    next_at timestamptz,
    error text,
    primary key (lane, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create index outbox_held_key on asgi_datasource.outbox_held (lane, key, seq) where state <> 'dead';
create index outbox_held_dead on asgi_datasource.outbox_held (event_id) where state = 'dead';

-- Delivered events where `outbox.keep` keeps them: a partition a day, dropped as a whole.
create table asgi_datasource.outbox_sent (
    event_id uuid not null,
    lane smallint not null,
    seq bigint not null,
    tenant text,
    topic text not null,
    key text not null,
    data json,
    data_bin bytea,
    headers json,
    created_at timestamptz not null,
    sent_at timestamptz not null default clock_timestamp()
) partition by range (sent_at);

-- Makes the partitions of today and tomorrow, and drops those that are older than is kept. SECURITY DEFINER: the relay's
-- role need not own the tables.
create function asgi_datasource.outbox_tend(keep interval) returns int
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $tend$
declare
    day date;
    part record;
    dropped int := 0;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('asgi_datasource.outbox_tend', 0)) then
        return 0;
    end if;
    for day in select (clock_timestamp() at time zone 'UTC')::date + n from generate_series(0, 1) n loop
        if to_regclass(format('asgi_datasource.outbox_sent_%s', to_char(day, 'YYYYMMDD'))) is null then
            execute format(
                'create table asgi_datasource.outbox_sent_%s partition of asgi_datasource.outbox_sent'
                ' for values from (%L) to (%L)',
                to_char(day, 'YYYYMMDD'), day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC');
        end if;
    end loop;
    for part in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'asgi_datasource.outbox_sent'::regclass and c.relname ~ '^outbox_sent_[0-9]{8}$'
    loop
        if to_date(right(part.relname, 8), 'YYYYMMDD') + 1
            <= ((clock_timestamp() - keep) at time zone 'UTC')::date then
            execute format('drop table asgi_datasource.%I', part.relname);
            dropped := dropped + 1;
        end if;
    end loop;
    return dropped;
end
$tend$;

revoke execute on function asgi_datasource.outbox_tend(interval) from public;

-- The events that each consumer has processed; `tenant` is whose transaction has, for tenants that move.
create table asgi_datasource.inbox (
    consumer text not null,
    event_id uuid not null,
    tenant text,
    processed_at timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);
create index inbox_age on asgi_datasource.inbox using brin (processed_at);
