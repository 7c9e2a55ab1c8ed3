"""Show and control the consumption: status, group, lag, metrics, stop, start, pause, resume and seek.

Depends on `consuming` and `chassis`; `stream_consumer` and `app` depend on it.
"""
