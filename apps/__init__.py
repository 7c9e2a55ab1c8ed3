"""The services: a producer and a consumer, each on the shared chassis."""
