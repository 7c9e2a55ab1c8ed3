"""Log, measure and trace any service.

Depends on `chassis.settings`, `http` and `kafka`; everything else may depend on it.
"""
