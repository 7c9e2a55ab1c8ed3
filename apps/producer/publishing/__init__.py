"""From what a caller sends to acknowledged records and their receipts.

In the order of a record: `values` and `lines` read, `publisher` admits, `deliveries` and `lanes` queue and batch,
`transport` sends, `receipts` and `line_answers` tell what became of it.

Depends on `apps.chassis` and `contracts`; the producer's routes depend on it.
"""
