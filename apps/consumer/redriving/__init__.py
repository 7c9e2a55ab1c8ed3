"""Dead letters over HTTP, and sending them back, each once.

Depends on `consuming` and `browsing`.
"""
