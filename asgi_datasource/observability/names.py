"""The one table of attribute, span and event names.

Names follow OpenTelemetry's semantic conventions for database clients where they have one, and start with
`asgi_datasource.` where they have none.
"""

from __future__ import annotations

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""Version of the conventions that the names belong to."""

AttributeValue = str | bool | int | float | tuple[str, ...]

# -- by the conventions

DB_SYSTEM: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_QUERY_TEXT: Final = "db.query.text"
DB_OPERATION: Final = "db.operation.name"
DB_BATCH_SIZE: Final = "db.operation.batch.size"
DB_STATUS_CODE: Final = "db.response.status_code"
DB_RETURNED_ROWS: Final = "db.response.returned_rows"
POOL_NAME: Final = "db.client.connection.pool.name"
CONNECTION_STATE: Final = "db.client.connection.state"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"

# -- messages

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
OTHER: Final = "_OTHER"
"""Value of an attribute beyond the values that are told apart, in the manner of the conventions."""
MESSAGING_BODY_SIZE: Final = "messaging.message.body.size"

# -- routing

DATASOURCE: Final = "asgi_datasource.datasource"
INTENT: Final = "asgi_datasource.intent"
NODE: Final = "asgi_datasource.node"
ROLE: Final = "asgi_datasource.role"
REASON: Final = "asgi_datasource.reason"
CANDIDATES: Final = "asgi_datasource.candidates"
NODES: Final = "asgi_datasource.nodes"
LAG_MS: Final = "asgi_datasource.lag_ms"
LAG_AGE_MS: Final = "asgi_datasource.lag_age_ms"
REQUIRED_LSN: Final = "asgi_datasource.required.lsn"
REPLICA_LSN: Final = "asgi_datasource.replica.lsn"
PROOF: Final = "asgi_datasource.proof"
PROOF_WAIT_MS: Final = "asgi_datasource.proof.wait_ms"
POOL_WAIT_MS: Final = "asgi_datasource.pool.wait_ms"
POOL_QUEUE_MS: Final = "asgi_datasource.pool.queue_ms"
POOL_CONNECT_MS: Final = "asgi_datasource.pool.connect_ms"
PIN_AGE_MS: Final = "asgi_datasource.pin.age_ms"
PIN_LSN: Final = "asgi_datasource.pin.lsn"
TENANT_ID: Final = "asgi_datasource.tenant.id"
TENANT_STRATEGY: Final = "asgi_datasource.tenant.strategy"

# -- transactions

BEGIN: Final = "asgi_datasource.transaction.begin"
ISOLATION: Final = "asgi_datasource.transaction.isolation"
READ_ONLY: Final = "asgi_datasource.transaction.read_only"
PROPAGATION: Final = "asgi_datasource.transaction.propagation"
ATTEMPT: Final = "asgi_datasource.transaction.attempt"
OUTCOME: Final = "asgi_datasource.transaction.outcome"
ROLLBACK_REASON: Final = "asgi_datasource.transaction.rollback_reason"
FAILED_AT: Final = "asgi_datasource.transaction.failed_at"
COMMIT_LSN: Final = "asgi_datasource.commit.lsn"
COMMIT_IN_DOUBT: Final = "asgi_datasource.commit.in_doubt"
BATCH_FAILED: Final = "asgi_datasource.batch.failed"
LINKED_FROM: Final = "asgi_datasource.link"
FETCHES: Final = "asgi_datasource.stream.fetches"
SAVEPOINT: Final = "asgi_datasource.savepoint"
SAVEPOINT_OUTCOME: Final = "asgi_datasource.savepoint.outcome"
HOOK: Final = "asgi_datasource.hook"
HOOK_EVENT: Final = "asgi_datasource.hook.event"
RETRY_ATTEMPT: Final = "asgi_datasource.retry.attempt"
RETRY_DELAY_MS: Final = "asgi_datasource.retry.delay_ms"
RETRY_OUTCOME: Final = "asgi_datasource.retry.outcome"

# -- failures

ERROR_KIND: Final = "asgi_datasource.error.kind"
CONSTRAINT: Final = "asgi_datasource.error.constraint"
REFERENCE: Final = "asgi_datasource.problem.reference"

HTTP_STATUS: Final = "http.response.status_code"

# -- log records

EVENT: Final = "asgi_datasource.event"
CODE_LINE: Final = "asgi_datasource.code.line"

# -- events

DOOMED: Final = "asgi_datasource.transaction.doomed"
RETRY_GIVEN_UP: Final = "asgi_datasource.transaction.retry.given_up"
HOOK_FAILED: Final = "asgi_datasource.hook.failed"
COMMIT_LOST: Final = "asgi_datasource.commit.connection_lost"
