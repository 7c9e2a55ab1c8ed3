"""The producer: values come in over HTTP and go out as records, each with a receipt."""
