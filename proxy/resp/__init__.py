"""The protocol, without I/O: frames, requests, replies, the command table."""
