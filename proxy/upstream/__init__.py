"""Links to Redis."""
