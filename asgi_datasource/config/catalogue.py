"""Every kind of problem explained: for `asgi-datasource rule`, the documentation, and whatever shows findings.

The examples are fragments of a document; the tests complete them and see that the wrong one is found wrong for this
reason alone, and the right one is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .diagnostics import Code, docs_of
from .reference import BEGIN, END


@dataclass(frozen=True, slots=True)
class Explained:
    """What there is to say about a code.

    Attributes:
        code: The code.
        title: What is wrong, in a few words.
        text: Why it matters and what to do, a paragraph or two of Markdown.
        wrong: A fragment of YAML in which it is found; empty where a document alone cannot show it.
        right: The fragment, mended.
    """

    code: Code
    title: str
    text: str
    wrong: str = ""
    right: str = ""

    @property
    def docs(self) -> str:
        """The page that says the same."""
        return docs_of(self.code)

    def as_markdown(self) -> str:
        """Everything, without a heading."""
        parts = [f"**{self.title}.**", self.text]
        if self.wrong:
            parts += ["Wrong:", f"```yaml\n{self.wrong}```"]
        if self.right:
            parts += ["Right:", f"```yaml\n{self.right}```"]
        return "\n\n".join(parts) + "\n"


def explain_code(code: Code) -> Explained:
    """What there is to say about a code."""
    return CATALOGUE[code]


_ENTRIES: Final = (
    Explained(
        Code.NOT_READABLE,
        "The file cannot be read",
        "It is not there, may not be read, or its name does not end in `.yaml`, `.yml`, `.toml` or `.json`: the ending"
        " tells the notation. `validate` exits with 2: nothing was checked.",
    ),
    Explained(
        Code.SYNTAX,
        "Not YAML, TOML or JSON",
        "The text cannot be taken apart, is not UTF-8, is empty, or holds two documents. The parser's own words are"
        " shown as far as they cannot quote a password. The usual causes are a tab in the indentation of YAML, and an"
        " unquoted `${NAME}` inside braces.",
        "datasources:\n  orders:\n    primary: {url: ${ORDERS_URL}}\n",
        'datasources:\n  orders:\n    primary: {url: "${ORDERS_URL}"}\n',
    ),
    Explained(
        Code.DUPLICATE_KEY,
        "A key stands twice in one place",
        "YAML and JSON readers keep one of the two and forget the other, each in its own way. Here it is an error in"
        " every notation.",
        "transactions:\n  deadline: 10s\n  deadline: 30s\n",
        "transactions:\n  deadline: 30s\n",
    ),
    Explained(
        Code.TOO_LARGE,
        "Too long, too deep, or growing without end",
        "No real document comes near the bounds (64 MB, 32 levels, 100,000 values behind aliases). They keep a file"
        " that was made by mistake, or to do harm, from taking the machine with it. An alias of what it stands in would"
        " have no end at all.",
        "datasources: &all\n  orders: *all\n",
        "datasources:\n  orders: {primary: {url: host=db}}\n",
    ),
    Explained(
        Code.NOT_PLAIN,
        "Something JSON has no word for",
        "Tags, dates, infinite numbers, and keys that are no strings mean different things to different readers. The"
        " document is the same in YAML, TOML and JSON, so it holds only what all three can say.",
        "transactions:\n  deadline: !!python/name:ten 10s\n",
        "transactions:\n  deadline: 10s\n",
    ),
    Explained(
        Code.BAD_SUPPRESSION,
        "A comment that cannot ignore anything",
        "`# ads: ignore[ADS041] reason` names the codes and gives the reason: whoever reads the file next has to know"
        " why this is as it should be. Errors cannot be ignored, because the application would not start with them.",
        "telemetry: {spans: false}  # ads: ignore[ADS048]\n",
        "telemetry: {spans: false}  # nothing to ignore here\n",
    ),
    Explained(
        Code.UNUSED_SUPPRESSION,
        "A comment that ignores nothing",
        "What it was written for is gone. Left in place it would hide the next finding of that kind, which nobody has"
        " judged.",
        "telemetry: {spans: false}  # ads: ignore[ADS048] the second rule is for the old clients\n",
        "telemetry: {spans: false}\n",
    ),
    Explained(
        Code.INCLUDE,
        "A file that cannot be included",
        "It is not there, cannot be read, is no mapping, or is part of the document already: each file is included"
        " once, so that nothing is said twice and nothing includes itself. A pattern without a match is a warning.",
        "include: [tenants/acme.yaml]\n",
        "include: []\n",
    ),
    Explained(
        Code.DEFINED_TWICE,
        "Two files say the same thing",
        "Included files are parts of one document, and none of them wins over another one. What is to be different in"
        " an environment goes into an overlay, which is there to change what the document says.",
    ),
    Explained(
        Code.VARIABLE_NOT_SET,
        "An environment variable is not set",
        "`${NAME}` stands for what the environment holds. The application refuses to start without it; `validate` asks"
        " for it only with `--environment`, because a machine that checks a pull request has none of the values.",
        'datasources:\n  orders: {primary: {url: "${ORDERS_PRIMARY_ULR}"}}\n',
        'datasources:\n  orders: {primary: {url: "${ORDERS_PRIMARY_URL:-host=db}"}}\n',
    ),
    Explained(
        Code.MALFORMED_REFERENCE,
        "A reference without name or end",
        "`${NAME}` and `${NAME:-default}` are the forms; the default holds no braces. `$${` stands for a plain `${`.",
        'tenants:\n  acme: {datasource: orders, schema: "${SCHEMA"}\n',
        'tenants:\n  acme: {datasource: orders, schema: "${SCHEMA:-acme}"}\n',
    ),
    Explained(
        Code.SECRET_NOT_READABLE,
        "A secret's file cannot be read",
        "`{file: path}` stands for what the file holds. A relative path starts at the configuration file. The longest"
        " is 64 kB, and it is UTF-8.",
    ),
    Explained(
        Code.COMMAND,
        "The program for a secret told nothing",
        "`{command: [program, argument]}` stands for what the program prints. It is run without a shell, for 10 s and"
        " 64 kB at most, and only where whoever loads the file allows it: `ConfigFile(path, allow_commands=True)`,"
        " `--allow-commands`, or `ASGI_DATASOURCE_ALLOW_COMMANDS=1`. What it prints to standard error is not shown.",
    ),
    Explained(
        Code.PLAIN_SECRET,
        "A secret stands in the file itself",
        "Whoever can read the repository can read it, and so can whoever ever could. Take the whole URL or the"
        " password in it from the environment, from a file, or leave the password to `PGPASSFILE` or"
        " `service=`; then change it.",
        'datasources:\n  orders: {primary: {url: "postgresql://app:hunter2@db/orders"}}\n',
        'datasources:\n  orders: {primary: {url: "postgresql://app:${ORDERS_PASSWORD:-}@db/orders"}}\n',
    ),
    Explained(
        Code.UNKNOWN_KEY,
        "A key that is unknown here",
        "A misspelt key would be ignored silently, and its default used. So every key has to be known. Is it known"
        " elsewhere, look at the indentation.",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    pool: {max_sise: 20}\n",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    pool: {max_size: 20}\n",
    ),
    Explained(
        Code.MISSING_KEY,
        "A key that is needed is missing",
        "There is no value that would be right for everybody.",
        "datasources:\n  orders:\n    primary: {}\n",
        "datasources:\n  orders:\n    primary: {url: host=db}\n",
    ),
    Explained(
        Code.WRONG_TYPE,
        "A value of the wrong type",
        'Nothing is converted: `"20"` is no number and `42` no string. Durations carry their unit, because everybody'
        " guesses it differently. Booleans are `true` and `false`; `yes`, `no`, `on` and `off` are words, as YAML 1.2"
        " has it.",
        "telemetry: {spans: no}\n",
        "telemetry: {spans: false}\n",
    ),
    Explained(
        Code.WRONG_VALUE,
        "A value out of range or of the wrong form",
        "The message says what is expected. What came from the environment or a file is never shown.",
        "transactions: {deadline: 10sec}\n",
        "transactions: {deadline: 10s}\n",
    ),
    Explained(
        Code.WRONG_COUNT,
        "Too few or too many keys or entries",
        "An entry of `tenancy.resolve` is one way to tell the tenant: two ways are two entries.",
        "tenancy:\n  default: orders\n  resolve: [{header: X-Tenant, subdomain_of: app.example.com}]\n",
        "tenancy:\n  default: orders\n  resolve: [{header: X-Tenant}, {subdomain_of: app.example.com}]\n",
    ),
    Explained(
        Code.WRONG_NAME,
        "A name of the wrong form",
        "Names of datasources and replicas are letters, digits, `_` and `-`: they stand in spans, metrics and messages."
        " A reference cannot stand in a name.",
        "datasources:\n  orders: {primary: {url: host=db}, replicas: {primary: {url: host=r1}}}\n",
        "datasources:\n  orders: {primary: {url: host=db}, replicas: {r1: {url: host=r1}}}\n",
    ),
    Explained(
        Code.NOT_YET_SUPPORTED,
        "Part of the design, but not of this version",
        "A key that would do nothing is refused, not ignored. The message says what to do until then.",
    ),
    Explained(
        Code.UNKNOWN_DATASOURCE,
        "A datasource that is not there",
        "A tenant lives on one of `datasources`; `tenancy.default` names one of them.",
        "tenants:\n  acme: {datasource: order}\n",
        "tenants:\n  acme: {datasource: orders}\n",
    ),
    Explained(
        Code.SHARED_PLACE,
        "Nothing keeps two tenants apart",
        "Two tenants on the same servers with the same `schema` or the same `row_security` see each other's rows: an"
        " error. With neither of them it is a warning, since the application may keep them apart by itself. An error"
        ' as well where `"*"` would make a listed tenant\'s place out of a name that is not listed.',
        "tenants:\n  acme: {datasource: orders, schema: shop}\n  globex: {datasource: orders, schema: shop}\n",
        "tenants:\n  acme: {datasource: orders, schema: acme}\n  globex: {datasource: orders, schema: globex}\n",
    ),
    Explained(
        Code.CONTRADICTION,
        "Values that contradict each other",
        "A pool whose `min_size` is above its `max_size`, a rule that is `read_only` with the intent to write, a status"
        " that commits and rolls back.",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    pool: {min_size: 20, max_size: 10}\n",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    pool: {min_size: 2, max_size: 10}\n",
    ),
    Explained(
        Code.SAME_SERVER,
        "Two servers of a datasource are one",
        "A replica that is its primary takes no load from it, and a read there proves nothing.",
        "datasources:\n  orders: {primary: {url: host=db}, replicas: {r1: {url: host=db}}}\n",
        "datasources:\n  orders: {primary: {url: host=db}, replicas: {r1: {url: host=r1}}}\n",
    ),
    Explained(
        Code.NO_RESOLVER,
        "No request can name a tenant",
        "There are tenants, but nothing in `tenancy.resolve` tells them from requests: an error, unless the resolvers"
        " come from code (`load(..., needs_resolver=False)`). With neither tenants nor a default datasource no request"
        " would be served: a warning.",
        "tenancy: {}\ntenants:\n  acme: {datasource: orders}\n",
        "tenancy: {resolve: [{header: X-Tenant}]}\ntenants:\n  acme: {datasource: orders}\n",
    ),
    Explained(
        Code.TENANT_NAME,
        "A tenant that no request can name",
        "A tenant's name is checked against `tenancy.pattern` before it is used anywhere.",
        "tenants:\n  ACME: {datasource: orders}\n",
        "tenants:\n  acme: {datasource: orders}\n",
    ),
    Explained(
        Code.PATTERN,
        "Not a regular expression",
        "`tenancy.pattern` is matched against the whole name, which a request gives, in time that grows with the name"
        " alone. Look-around and back-references cannot be matched so, and are refused.",
        'tenancy: {default: orders, pattern: "[a-z"}\n',
        'tenancy: {default: orders, pattern: "[a-z]+"}\n',
    ),
    Explained(
        Code.URL,
        "A connection URL that libpq would misread",
        "Inside a URL, write `@` as `%40`, `/` as `%2F`, `?` as `%3F`, `#` as `%23`, `%` as `%25`. An unescaped `@` in"
        " a password moves the border to the host, and part of the password is looked up in the DNS.",
        'datasources:\n  orders: {primary: {url: "postgresql://app@db:99999/orders"}}\n',
        'datasources:\n  orders: {primary: {url: "postgresql://app@db:5432/orders"}}\n',
    ),
    Explained(
        Code.UNREACHABLE,
        "Never comes to its turn",
        "The first rule, and the first resolver, that matches counts. One in front takes all that this one takes.",
        'routes:\n  - {match: "GET /**", intent: read}\n  - {match: "GET /basket", consistency: strong}\n',
        'routes:\n  - {match: "GET /basket", consistency: strong}\n  - {match: "GET /**", intent: read}\n',
    ),
    Explained(
        Code.NAME_TOO_LONG,
        "A name that PostgreSQL would cut off",
        "Names in PostgreSQL are at most 63 bytes (not characters) long, and longer ones are cut off without an error:"
        " two tenants could meet in one schema.",
        f"tenants:\n  acme: {{datasource: orders, schema: {'ä' * 32}}}\n",
        "tenants:\n  acme: {datasource: orders, schema: acme}\n",
    ),
    Explained(
        Code.OVER_BUDGET,
        "More connections than a server allows",
        "`budget.processes` times the `max_size` of all pools that lead to one server, and `budget.reserve` for others,"
        " have to fit into `budget.max_connections`. `check` compares with what each server really allows.",
        "budget: {processes: 20, reserve: 10, max_connections: 100}\n",
        "budget: {processes: 8, reserve: 10, max_connections: 100}\n",
    ),
    Explained(
        Code.NEVER_ANSWERS,
        "A way to tell the tenant that cannot name any",
        "All paths below its prefix are exempt, or no tenant has a name that could stand in a host or in a path.",
        "tenancy: {default: orders, resolve: [{path_prefix: /t}], exempt: [/t]}\n",
        "tenancy: {default: orders, resolve: [{path_prefix: /t}], exempt: [/health]}\n",
    ),
    Explained(
        Code.LAG_TOO_SHORT,
        "A max_lag that no replica can show to keep",
        "Servers are asked how they are four times within the shortest `max_lag`, but not more often than every 50 ms."
        " What is known of a replica's data is always older than a bound below 200 ms now and then, and below 50 ms"
        " always: the primary answers instead. A read that has to see everything says `consistency: strong`.",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    replicas: {r1: {url: host=r1}}\n"
        "    routing: {max_lag: 50ms}\n",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    replicas: {r1: {url: host=r1}}\n"
        "    routing: {max_lag: 5s}\n",
    ),
    Explained(
        Code.OUTLIVED_TOKEN,
        "A replica may be further behind than the client's token counts",
        "After `consistency.ttl` a client's token is forgotten. A replica that is further behind than that lacks what"
        " the client wrote before, and nothing keeps its reads from it: `routing.max_lag` would, or a longer `ttl`.",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    replicas: {r1: {url: host=r1}}\n"
        "consistency: {token: cookie, secret: '${TOKEN_SECRET:-0123456789abcdef}', ttl: 30s}\n",
        "datasources:\n  orders:\n    primary: {url: host=db}\n    replicas: {r1: {url: host=r1}}\n"
        "    routing: {max_lag: 5s}\n"
        "consistency: {token: cookie, secret: '${TOKEN_SECRET:-0123456789abcdef}', ttl: 30s}\n",
    ),
    Explained(
        Code.UNKNOWN_TENANT,
        "Names a tenant that is not there",
        "A resolver leads requests to a tenant that the document does not list: all of them would be answered with"
        " 404.",
        "tenancy: {resolve: [{fixed: amce}]}\ntenants: {acme: {datasource: orders}}\n",
        "tenancy: {resolve: [{fixed: acme}]}\ntenants: {acme: {datasource: orders}}\n",
    ),
    Explained(
        Code.UNVERIFIABLE,
        "A token that could not be verified, or not safely",
        "A token is verified by one `key` or by the keys of a `jwks` file. One key serves algorithms of one kind: were"
        " a public key taken for the shared secret of HS256, everybody could sign.",
        "tenancy:\n  default: orders\n  resolve:\n"
        "    - {jwt_claim: {claim: tenant, algorithms: [HS256, RS256], key: {file: datasource.yaml}}}\n",
        "tenancy:\n  default: orders\n  resolve:\n"
        "    - {jwt_claim: {claim: tenant, algorithms: [RS256], jwks: /etc/jwks.json}}\n",
    ),
    Explained(
        Code.ADDRESS,
        "Not an address, a network or a host",
        "`trusted_proxies` takes addresses, networks such as 10.0.0.0/8, and `unix`; `trusted_hosts` and `domain` take"
        " the names of hosts.",
        "tenancy: {default: orders, trusted_proxies: [10.0.0.0/33], trusted_headers: [forwarded]}\n",
        "tenancy: {default: orders, trusted_proxies: [10.0.0.0/8], trusted_headers: [forwarded]}\n",
    ),
    Explained(
        Code.SHARED_NAME,
        "One name or alias for two tenants",
        "Requests would reach one of the two by chance.",
        "tenants:\n  acme: {datasource: orders, schema: acme, aliases: [globex]}\n"
        "  globex: {datasource: orders, schema: globex}\n",
        "tenants:\n  acme: {datasource: orders, schema: acme}\n  globex: {datasource: orders, schema: globex}\n",
    ),
    Explained(
        Code.NO_CONNECTION,
        "A server cannot be reached",
        "Nobody answers at the address, the login is refused, or the database is not there. The message is libpq's own,"
        " without the password. Nothing else was asked about this server.",
    ),
    Explained(
        Code.WRONG_ROLE,
        "A server with the wrong role",
        "The primary of a datasource takes writes; a standby in its place would refuse each of them with 25006. A"
        " replica that is no standby is a database of its own, and what it answers has nothing to do with the primary.",
    ),
    Explained(
        Code.NOT_ITS_REPLICA,
        "A replica of something else",
        "The replica does not follow this primary: it comes from another cluster (their system identifiers differ), or"
        " what the primary writes does not arrive there.",
    ),
    Explained(
        Code.SERVER_VERSION,
        "A version that does not fit",
        "PostgreSQL 13 and newer are supported. A streaming replica has its primary's major version.",
    ),
    Explained(
        Code.POOLER,
        "A pooler in between",
        "Another process id answers than the one that was told at the connection: a pooler such as PgBouncer stands in"
        " between. Session and transaction mode work (everything of a tenant is set inside its transaction); in"
        " statement mode there are no transactions, and nothing here can work.",
    ),
    Explained(
        Code.CONNECTION_LIMIT,
        "More connections than the server allows",
        "Each process has a pool for each server: `budget.processes` times the `max_size` of all pools that lead to a"
        " server, with `budget.reserve` for others, has to fit into what its `max_connections`, the login's and the"
        " database's own limits leave. Where it does not, the last processes of a deployment start and cannot connect.",
    ),
    Explained(
        Code.LAG,
        "A replica is behind",
        "Replay is paused, or the replica has not replayed what the primary had written when the check began.",
    ),
    Explained(
        Code.CLOCK,
        "Clocks that differ",
        "The server's clock and this machine's are more than a second apart. Lag that is told as a time, and tokens"
        " that expire, are off by as much.",
    ),
    Explained(
        Code.NOT_ENCRYPTED,
        "A connection without TLS",
        "The connection leaves this machine unencrypted: passwords are protected by SCRAM, customers' data is not. Add"
        " `sslmode=verify-full` and the authority's certificate to the URL.",
    ),
    Explained(
        Code.ROLE_BYPASSES,
        "A login that row security does not hold for",
        "Superusers and roles with BYPASSRLS see every row, whatever the policies say: each tenant would see all"
        " others.",
    ),
    Explained(
        Code.UNGUARDED_TABLE,
        "A shared table without a policy",
        "Tenants with `row_security` reach this table, and nothing keeps them apart in it. Is it reference data that"
        " all of them share, ignore the warning with that reason.",
    ),
    Explained(
        Code.NOT_FORCED,
        "Policies that do not hold for the owner",
        "Row security does not hold for a table's owner unless it is FORCEd, nor behind a view for the view's owner. An"
        " application that created its tables owns them.",
    ),
    Explained(
        Code.FALLS_THROUGH,
        "A name that falls through",
        "A tenant's schema is searched first, and then the datasource's `search_path`. Where a table is missing in the"
        " tenant's schema (a migration that has not run there yet), the shared one of the same name is used silently.",
    ),
    Explained(
        Code.DEFINER,
        "A function with its owner's rights and its caller's names",
        "A SECURITY DEFINER function without `set search_path` looks tables up where its caller says, and uses them as"
        " its owner: what is kept apart by `search_path` or policies is not kept apart inside of it.",
    ),
    Explained(
        Code.MISSING_PLACE,
        "A tenant without its place",
        "The tenant's schema or role is not there, or the login may not become that role.",
    ),
    Explained(
        Code.CANNOT_TELL,
        "A question without an answer",
        "The login may not see what this part of the check needs, or the server did not answer in time.",
    ),
    Explained(
        Code.OPEN_POLICY,
        "A policy that keeps nobody apart",
        "Permissive policies are joined by OR: one that says `true`, or lets rows pass where no tenant is set, opens"
        " the table whatever the others say. A policy that reads a setting which no tenant's `row_security` sets shows"
        " nobody anything. Where all tenants may see the table, name it in `audit.shared_tables`.",
    ),
    Explained(
        Code.SHARED_ROLE,
        "A role that may use several tenants' schemas",
        "Tenants that a schema keeps apart are kept apart by the `search_path` alone where they run as one role: a name"
        " with a schema in front of it reaches another tenant's tables. A role for each, which may use its own schema"
        " alone, keeps them apart by rights. Where one is enough, name the role in `audit.allow_roles`.",
    ),
)

CATALOGUE: Final = {entry.code: entry for entry in _ENTRIES}
"""Every code with its explanation, in the order of the codes."""


def render_catalogue() -> str:
    """Every code as Markdown, between the marks of the documentation's page."""
    parts = [f"## {code.value}\n\n{CATALOGUE[code].as_markdown()}" for code in Code if code in CATALOGUE]
    return "\n".join([BEGIN, "", *parts, END])
