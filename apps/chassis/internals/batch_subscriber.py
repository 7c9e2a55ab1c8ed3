"""What the consumer's subscriber replaces in FastStream's `BatchSubscriber`: a PROTECTION.

FastStream makes its own class of subscriber and polls by itself, so the class of an instance is changed. Reaches for
its poll, its processing of a batch, its lock, its tasks and its listener. Lost without it: positions that Kafka no
longer has and batches that cannot be read end the consume loop, a rebalance does not wait for the in-flight batch, and
records wait after an empty poll as long as that took (no upstream issue is known).
"""

REACHES = (
    "faststream.kafka.subscriber.usecase:BatchSubscriber.get_msg(consumer)",
    "faststream.kafka.subscriber.usecase:BatchSubscriber.process_message(msg)",
    "faststream.kafka.subscriber.usecase:BatchSubscriber.batch_timeout_ms",
    "faststream.kafka.subscriber.usecase:LogicSubscriber.__init__ uses _listener, consumer",
    "faststream._internal.endpoint.subscriber.mixins:TasksMixin.__init__ uses tasks",
    "faststream._internal.endpoint.subscriber.usecase:SubscriberUsecase.start uses lock",
    "faststream._internal.endpoint.subscriber.utils:MultiLock.wait_release(timeout)",
    "faststream._internal.endpoint.subscriber.utils:MultiLock.empty",
)
