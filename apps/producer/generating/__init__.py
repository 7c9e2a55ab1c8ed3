"""Generate sample values: realistic people, and values of any other type.

Depends on `contracts`; `publishing` depends on it.
"""
