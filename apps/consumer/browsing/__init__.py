"""Reading without a group: the newest records, search, the live tail.

Depends on `consuming`.
"""
