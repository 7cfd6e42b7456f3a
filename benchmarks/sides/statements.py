"""The SQL of every side, with each driver's placeholders, and its table."""

from __future__ import annotations

from typing import Final

from benchmarks.sides.asgi import ITEMS, TENANT, TENANT_SETTING

APP_ROLE: Final = "bench_app"
APP_PASSWORD: Final = "bench"

READ: Final = "select id, name, qty from items where id = %s"
WRITE: Final = "update items set qty = qty + 1 where id = %s returning id, name, qty"
LOCKED: Final = READ + " for update"
REPORT: Final = (
    "select qty % 10 as digit, count(*) as items, sum(qty)::int as total from items group by 1 order by 1"
).replace("%", "%%")
SET_TENANT: Final = f"select set_config('{TENANT_SETTING}', %s, true)"

NUMBERED_READ: Final = READ.replace("%s", "$1")
NUMBERED_LOCKED: Final = LOCKED.replace("%s", "$1")
NUMBERED_REPORT: Final = REPORT.replace("%%", "%")
NUMBERED_WRITE: Final = WRITE.replace("%s", "$1")
NUMBERED_SET_TENANT: Final = SET_TENANT.replace("%s", "$1")

NAMED_READ: Final = READ.replace("%s", ":id")
NAMED_LOCKED: Final = LOCKED.replace("%s", ":id")
NAMED_REPORT: Final = NUMBERED_REPORT.replace("::int", "").replace("sum(qty)", "cast(sum(qty) as int)")
NAMED_WRITE: Final = WRITE.replace("%s", ":id")
NAMED_SET_TENANT: Final = SET_TENANT.replace("%s", ":tenant")

# With row security, the statements find no row without the tenant's setting.
SET_UP: Final = (
    f"create role {APP_ROLE} login password '{APP_PASSWORD}'",
    "create table items (id int primary key, tenant text not null, name text not null, qty int not null)"
    " with (fillfactor = 50)",
    f"insert into items select n, '{TENANT}', 'item ' || n, 0 from generate_series(1, {ITEMS}) n",
    f"insert into items select n, 'globex', 'item ' || n, 0 from generate_series({ITEMS + 1}, {2 * ITEMS}) n",
    "alter table items enable row level security",
    f"create policy tenant on items using (tenant = current_setting('{TENANT_SETTING}', true))",
    f"grant select, update on items to {APP_ROLE}",
    "vacuum analyze items",
)
