"""A small shop with FastAPI and SQLModel, for two tenants: an application to copy."""
