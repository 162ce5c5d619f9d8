"""Mutants of a saga: each does one thing wrong on purpose, and whoever proves rollback has to notice it."""
