"""Downstream: clients' bytes in, ordered replies out."""
