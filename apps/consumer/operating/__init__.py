"""What an operator sees and does: status, stop, start, pause, resume, seek, group and lag.

Depends on `consuming`.
"""
