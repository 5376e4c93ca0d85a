"""The LRU tier: replies kept in memory, coherent with Redis. No I/O and no event loop in here."""
