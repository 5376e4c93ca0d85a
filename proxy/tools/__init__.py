"""Programs for maintaining the proxy itself. The proxy imports none of them."""
