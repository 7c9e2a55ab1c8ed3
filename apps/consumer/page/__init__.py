"""The live page: what the consumer does, as a person sees and steers it in a browser."""
