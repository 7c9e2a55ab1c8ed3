"""From what a caller sends to acknowledged records and their receipts.

Depends on `apps.chassis` and `contracts`; the producer's routes depend on it.
"""
