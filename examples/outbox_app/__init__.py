"""A shop that publishes orders, and two consumers that send a mail for each exactly once: an application to copy."""
