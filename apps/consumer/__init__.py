"""The consumer: records come in from the topic, are handled, and the newest can be looked at over HTTP."""
