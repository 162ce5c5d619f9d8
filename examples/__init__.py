"""Sagas to try and to learn from."""
