"""Failures as values: what can be made to fail, how, and the interceptor that does it."""
