"""The producer's first page: the ways on from here."""
