"""The live page: watch and control the consumer in a browser."""
