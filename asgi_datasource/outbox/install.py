"""The tables of the outbox, put into a database.

`schema/` holds plain SQL files, each of which may run again: the migrate engine can run the same files as shared
migrations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources

from ..drivers.control import ControlConnection, control_driver
from ..tenancy.provisioning.trust import open_admin


@dataclass(frozen=True, slots=True)
class InstallSite:
    """One database that gets the tables.

    Attributes:
        name: Names it in messages: the datasource, and the tenant where each has a database.
        admin_url: The connection string of the role that owns the tables.
        url: The application's connection string, whose role writes events and runs the relay.
        dbname: The database, where the connection string leads to another one.
        roles: The roles of tenants, which write events.
        is_of_a_tenant: It is a tenant's own database.
    """

    name: str
    admin_url: str = field(repr=False)
    url: str = field(repr=False)
    dbname: str | None = None
    roles: tuple[str, ...] = ()
    is_of_a_tenant: bool = False


def schema_files() -> list[tuple[str, str]]:
    """Name and text of each file, in order."""
    folder = resources.files("asgi_datasource.outbox") / "schema"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(file.name, file.read_text(encoding="utf-8")) for file in files]


async def install(site: InstallSite) -> None:
    """Create the tables where they are missing, and grant what the roles of the application need.

    Raises:
        DataError: The database cannot be reached, the login may not create there, or another role owns something in the
            schema `asgi_datasource`, whose code would run with the rights of this login.
    """
    async with open_admin(site, dbname=site.dbname) as admin, admin.transaction():
        await admin.rows("select pg_advisory_xact_lock(hashtextextended('asgi_datasource.outbox', 0))")
        for name, text in schema_files():
            await admin.script(text, name=name)
        await grant(admin, relay_roles=[control_driver().login_of(site.url)], writer_roles=site.roles)


async def grant(admin: ControlConnection, *, relay_roles: Iterable[str], writer_roles: Iterable[str]) -> None:
    """Grant what relays and writers need; a role that owns the tables is not touched."""
    owner = (await admin.rows("select current_user::text"))[0][0]
    for role in dict.fromkeys(relay_roles):
        if role != owner:
            await admin.command("grant usage on schema asgi_datasource to {}", role)
            await admin.command("grant select, insert, delete on asgi_datasource.outbox to {}", role)
            await admin.command("grant select, update on asgi_datasource.outbox_lane to {}", role)
            await admin.command(
                "grant select, insert, update, delete on asgi_datasource.outbox_held, asgi_datasource.outbox_relay,"
                " asgi_datasource.inbox to {}",
                role,
            )
            await admin.command("grant select, insert on asgi_datasource.outbox_sent to {}", role)
            await admin.command("grant execute on function asgi_datasource.outbox_tend(interval) to {}", role)
    await grant_writers(admin, writer_roles)


async def has_tables(admin: ControlConnection) -> bool:
    """Whether the tables of the outbox are in a database."""
    [[found]] = await admin.rows("select to_regclass('asgi_datasource.outbox') is not null")
    return bool(found)


async def grant_writers(admin: ControlConnection, roles: Iterable[str]) -> None:
    """Let roles publish events and process them; a role that owns the tables is not touched."""
    owner = (await admin.rows("select current_user::text"))[0][0]
    for role in dict.fromkeys(roles):
        if role != owner:
            await admin.command("grant usage on schema asgi_datasource to {}", role)
            await admin.command("grant insert on asgi_datasource.outbox to {}", role)
            await admin.command("grant select, insert on asgi_datasource.inbox to {}", role)
