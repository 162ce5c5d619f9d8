"""Declaring sagas: steps, their compensations, and how hard they try."""
