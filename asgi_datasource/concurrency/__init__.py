"""Tasks out of reach of cancellation, locks, queues and limits: nothing here knows PostgreSQL or ASGI."""
