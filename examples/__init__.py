"""Handlers with a real database, run by tests."""
