"""The producer: takes values over HTTP, writes them to Kafka as records, and answers with receipts."""
