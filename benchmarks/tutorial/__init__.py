"""A pair of services as tutorials have them: FastAPI and FastStream, a record at a time.

Written for the comparison from what both projects' public documentation shows (FastStream's FastAPI plugin, its
`KafkaRouter`), with one thing left out in its favour: the log, which prints two lines a record by default.
"""
