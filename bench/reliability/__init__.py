"""What goes on in trouble: thousands of connections, storms of them, faults behind, bytes that are no RESP.

``python -m bench.reliability`` runs all parts, bounded in time, on loopback, with servers of its own that end
with it, and writes a table and JSON to ``bench/results``.
"""
