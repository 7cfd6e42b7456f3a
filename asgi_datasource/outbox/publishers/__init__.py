"""Where events go: one module a broker, each with the extra of that name."""
