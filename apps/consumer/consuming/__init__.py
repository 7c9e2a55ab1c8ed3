"""From a fetched batch to its commit: decode, retry, bisect, limits, dead letters.

Depends on `apps.chassis` and `contracts`; the other packages of the consumer depend on it.
"""
