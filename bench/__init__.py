"""Measures what the proxy costs: CPU per operation, throughput and idle figures, beside Redis itself."""
