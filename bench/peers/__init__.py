"""Pannier beside Redis itself, Envoy, twemproxy, HAProxy and a cache inside the client."""
