"""Publish records: from a caller's JSON to acknowledged records and their receipts.

In the order of a record: `values` and `lines` decode, `publisher` admits, `deliveries` and `lanes` queue and batch,
`transport` sends, `receipts` and `line_answers` report the result. `calls` and `in_order` combine these steps.

Depends on `apps.chassis` and `contracts`; the producer's routes depend on it.
"""
