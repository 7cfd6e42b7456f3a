"""The request path: middleware, response guard, transaction outcome, retries and problem responses."""
