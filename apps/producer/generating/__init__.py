"""Generate sample values: by a stream's own generator, or of any type.

Depends on `contracts`; `publishing` depends on it.
"""
