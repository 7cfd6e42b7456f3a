-- The application logs in as role app: no superuser, no BYPASSRLS, owner of nothing. It never deletes.

grant select, update on flights to app;
grant select, insert on notes, rebookings to app;
