"""Logs, metrics and traces of any service.

Depends on `chassis.settings`; everything else may depend on it.
"""
