import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.KafkaConsumer;

/** Consumes a topic as a member of a group by the newer protocol (KIP-848), until its standard input ends. */
public class NewerMember {
    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("group.id", arguments[2]);
        properties.put("group.protocol", "consumer");
        properties.put("client.id", "newer");
        properties.put("auto.offset.reset", "earliest");
        properties.put("auto.commit.interval.ms", "200");
        var deserializer = "org.apache.kafka.common.serialization.ByteArrayDeserializer";
        properties.put("key.deserializer", deserializer);
        properties.put("value.deserializer", deserializer);
        try (var consumer = new KafkaConsumer<byte[], byte[]>(properties)) {
            consumer.subscribe(List.of(arguments[1]));
            while (System.in.available() == 0) consumer.poll(Duration.ofMillis(100));
        }
    }
}
