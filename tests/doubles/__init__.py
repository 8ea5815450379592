"""Doubles for tests: servers that speak the wire of the real service, and the clock that drives them."""
