import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;

/**
 * Consumes a topic as a member of a group by the newer protocol (KIP-848), or with a fourth argument of a share group
 * (KIP-932), until its standard input ends.
 */
public class NewerMember {
    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("group.id", arguments[2]);
        properties.put("client.id", "newer");
        var deserializer = "org.apache.kafka.common.serialization.ByteArrayDeserializer";
        properties.put("key.deserializer", deserializer);
        properties.put("value.deserializer", deserializer);
        if (arguments.length > 3) share(properties, arguments[1]);
        else consume(properties, arguments[1]);
    }

    static void consume(Properties properties, String topic) throws Exception {
        properties.put("group.protocol", "consumer");
        properties.put("auto.offset.reset", "earliest");
        properties.put("auto.commit.interval.ms", "200");
        try (var consumer = new KafkaConsumer<byte[], byte[]>(properties)) {
            consumer.subscribe(List.of(topic));
            while (System.in.available() == 0) consumer.poll(Duration.ofMillis(100));
        }
    }

    static void share(Properties properties, String topic) throws Exception {
        try (var consumer = new KafkaShareConsumer<byte[], byte[]>(properties)) {
            consumer.subscribe(List.of(topic));
            while (System.in.available() == 0) consumer.poll(Duration.ofMillis(100));
        }
    }
}
