"""Incidents on real servers, with what the trace, the metrics, the log and the console show of them."""
