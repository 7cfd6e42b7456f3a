-- The tables of an airline: flights and notes. Names have no schema, so the same file creates the schema of one airline,
-- the shared tables of several, and the tables of an airline's own database.

-- Last, so that no temporary table takes the place of a table in the functions below.
select set_config('search_path', current_setting('search_path') || ', pg_temp', true);

create table flights (
  id          bigint   primary key,          -- number of its line in flights.csv, unique over all airlines
  carrier     text     not null,
  flight_no   integer  not null,
  flight_date date     not null,
  sched_dep   timestamp not null,            -- New York local time; all flights leave from EWR, JFK or LGA
  origin      text     not null,
  dest        text     not null,
  tailnum     text,
  dep_delay   integer,                       -- minutes; null where it did not leave
  arr_delay   integer,
  distance    integer  not null,
  status      text     not null check (status in ('flown', 'diverted', 'cancelled')),
  changed_at  timestamptz                    -- last change by the desk; null: as the data set has it
);

create index on flights (flight_date, sched_dep);
create index on flights (origin, dest);

create table notes (
  id         bigint generated always as identity primary key,
  flight_id  bigint not null references flights,
  body       text   not null check (length(body) between 1 and 500),
  created_at timestamptz not null default now()
);

create index on notes (flight_id);

create table rebookings (
  id          bigint generated always as identity primary key,
  from_flight bigint  not null references flights,
  to_flight   bigint  not null references flights,
  passengers  integer not null check (passengers > 0),
  created_at  timestamptz not null default now(),
  check (from_flight <> to_flight)
);

create index on rebookings (to_flight);
create index on rebookings (from_flight);

-- Free seats for rebooked passengers. The data set has planes but no passengers, so 15 % of the seats count as free; an
-- unknown plane has 150 seats.
create function free_seats(flight bigint) returns integer
language sql stable set search_path from current as $$
  select floor(0.15 * coalesce(p.seats, 150))::integer
         - coalesce((select sum(r.passengers) from rebookings r where r.to_flight = f.id), 0)::integer
  from flights f left join ref.planes p using (tailnum)
  where f.id = flight
$$;

-- Checked at COMMIT, because the rule covers the sum of several rows. So all statements of an overbooking succeed, and
-- COMMIT fails: the example shows the response in this case.
create function refuse_overbooking() returns trigger
language plpgsql set search_path from current as $$
begin
  -- One rebooking for a flight at a time, because two that each fit could overbook it together.
  perform from flights where id = new.to_flight for update;
  if free_seats(new.to_flight) < 0 then
    raise exception 'flight is overbooked' using errcode = 'check_violation', constraint = 'flights_not_overbooked';
  end if;
  return null;
end
$$;

create constraint trigger flights_not_overbooked after insert or update on rebookings
  deferrable initially deferred for each row execute function refuse_overbooking();
