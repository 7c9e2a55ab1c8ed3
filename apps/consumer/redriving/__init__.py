"""Show dead letters and send them back to their topic, each once.

Depends on `browsing` and `chassis`; `stream_consumer` and `app` depend on it.
"""
