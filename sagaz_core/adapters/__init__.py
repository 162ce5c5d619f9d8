"""Saga engines behind one protocol: ours, the one of the `sagaz` package, and those that plugins bring."""
