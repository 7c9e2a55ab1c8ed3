"""What both services agree on: the record, its key and partition, and the dead letter. No I/O, no framework."""
