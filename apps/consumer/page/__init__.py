"""The live page: what the consumer does, as one sees and steers it in a browser."""
