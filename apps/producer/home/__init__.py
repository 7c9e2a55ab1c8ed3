"""The producer's home page: links to the documents and the live page."""
