-- In the schema of each tenant.
create table orders (id bigint generated always as identity primary key, item text not null, email text not null);
create table mails (id bigint generated always as identity primary key, order_id bigint not null, recipient text not null);
