"""Read a topic without a group: the newest records, search, one record, the live tail.

Depends on `consuming` and `chassis`; `redriving`, `stream_consumer` and `app` depend on it.
"""
