-- The application logs in as role app, without superuser and BYPASSRLS, which owns no objects. It never deletes.

grant select, update on flights to app;
grant select, insert on notes, rebookings to app;
