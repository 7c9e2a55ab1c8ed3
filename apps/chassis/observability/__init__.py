"""Log, measure and trace a service.

Depends on `chassis.settings`, `http` and `kafka`; everything else may depend on it.
"""
