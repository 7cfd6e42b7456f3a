"""Which server runs a statement: one primary and its replicas, watched, routed to, and asked for proof."""
