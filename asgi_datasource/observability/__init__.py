"""Spans and metrics: their names, and how they are recorded."""
