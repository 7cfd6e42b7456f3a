-- The tables of models.py, in each tenant's schema.

create table product (
  id    serial  primary key,
  name  text    not null unique,
  stock integer not null default 0
);

create table placed_order (
  id         serial  primary key,
  product_id integer not null references product,
  quantity   integer not null
);
