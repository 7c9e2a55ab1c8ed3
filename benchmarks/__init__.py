"""Measures the services beside the raw client, on a real Kafka and in the same run."""
