"""Show dead letters, send them back to their topic, each once, and discard them.

Depends on `browsing` and `chassis`; `stream_consumer` and `app` depend on it.
"""
