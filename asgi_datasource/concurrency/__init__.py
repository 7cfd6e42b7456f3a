"""Tasks, locks, queues and limits for asyncio; independent of PostgreSQL and ASGI."""
