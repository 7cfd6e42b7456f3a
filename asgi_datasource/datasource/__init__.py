"""Datasources: a primary and its replicas, their health, the routing of statements, and causal reads."""
