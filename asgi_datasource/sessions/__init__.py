"""What a handler holds: the session, its unit of work, and the blocks and annotations that open transactions."""
