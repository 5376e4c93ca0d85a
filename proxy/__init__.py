"""Pannier: a sidecar cache proxy that speaks RESP."""

__version__ = "0.1.0"
