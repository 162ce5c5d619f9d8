"""Proving rollback: runs under fault plans, and the judgement of how they end."""
