"""What any Litestar service on Kafka needs: settings, connection, health, errors, documents, shutdown."""
