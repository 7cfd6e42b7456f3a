"""Several airlines in the same tables: row security in their shared schema, and in no other one.

Each row has a tenant; the policies compare it with app.tenant, which asgi-datasource sets in every transaction.
"""

SHARED = "shared"

STATEMENTS = """
-- nullif: a custom setting that was set in an earlier transaction of the connection reads '' afterwards, not NULL.
create function tenant() returns text
language sql stable as $$ select nullif(current_setting('app.tenant', true), '') $$;

alter table flights    add column tenant text not null default tenant();
alter table notes      add column tenant text not null default tenant();
alter table rebookings add column tenant text not null default tenant();

-- Checks of foreign keys bypass row security: without the tenant in the key, a note could reference another tenant's
-- flight.
alter table flights add unique (tenant, id);
alter table notes
  drop constraint notes_flight_id_fkey,
  add foreign key (tenant, flight_id) references flights (tenant, id);
alter table rebookings
  drop constraint rebookings_from_flight_fkey,
  drop constraint rebookings_to_flight_fkey,
  add foreign key (tenant, from_flight) references flights (tenant, id),
  add foreign key (tenant, to_flight)   references flights (tenant, id);

create index on flights (tenant, flight_date, sched_dep);

-- force: also for the owner. `using` also checks new rows, so a tenant cannot write rows of another tenant.
alter table flights    enable row level security, force row level security;
alter table notes      enable row level security, force row level security;
alter table rebookings enable row level security, force row level security;

create policy own_rows on flights    using (tenant = (select tenant()));
create policy own_rows on notes      using (tenant = (select tenant()));
create policy own_rows on rebookings using (tenant = (select tenant()));
"""


async def up(db):
    if db.schema == SHARED:
        await db.execute(STATEMENTS)
