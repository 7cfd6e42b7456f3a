-- Read-only tables that all airlines share: airlines, airports, planes. They are in the schema ref of both databases.

create schema ref;

create table ref.airlines (
  carrier text primary key,
  name    text not null
);

create table ref.airports (
  faa  text primary key,
  name text not null,
  lat  double precision not null,
  lon  double precision not null
);

create table ref.planes (
  tailnum      text primary key,
  built        smallint,
  manufacturer text not null,
  model        text not null,
  seats        smallint not null check (seats > 0)
);

grant usage on schema ref to app;
grant select on all tables in schema ref to app;
