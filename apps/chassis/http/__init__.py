"""HTTP of any Litestar service: problems, admission, authorization, bodies, documents, health, streaming.

Depends on `chassis.settings` and `observability`; both services depend on it.
"""
