"""What the configuration becomes: compiled once, opened, audited at start-up, explained, reloaded."""
