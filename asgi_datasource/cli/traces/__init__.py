"""Traces from files: the formats of OpenTelemetry and Jaeger, and what a span says about routing, in words."""
