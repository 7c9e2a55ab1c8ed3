"""Measures the services and the raw client, on a real Kafka and in the same run."""
