// Prints the events of every call, each once: `java -cp 'jars/*' Consumer.java BOOTSTRAP_SERVERS [REGISTRY_URL [GROUP]]`.
// In jars/: org.apache.kafka:kafka-clients and org.apache.avro:avro with what they depend on.
import java.net.URI;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.*;
import java.util.stream.Stream;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.*;

class Consumer {
    static final String TOPICS = "sessions audio.in transcripts intents responses audio.out control assist deadletters deliveries";

    public static void main(String[] args) throws Exception {
        var registry = args.length > 1 ? args[1] : "http://127.0.0.1:8080/registry";
        var group = args.length > 2 ? args[2] : "my-first-consumer";
        var config = Map.<String, Object>of("bootstrap.servers", args[0], "group.id", group, "auto.offset.reset", "earliest");
        var schemas = new HashMap<Integer, Schema>();
        var seen = new HashSet<Object>();
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(Stream.of(TOPICS.split(" ")).map("voice."::concat).toList());
            while (true) for (var record : consumer.poll(Duration.ofSeconds(1))) {
                var id = ByteBuffer.wrap(record.value()).getInt(1); // after a zero byte; then comes Avro
                var url = URI.create(registry + "/schemas/ids/" + id + "/schema").toURL();
                if (!schemas.containsKey(id)) schemas.put(id, new Schema.Parser().parse(url.openStream()));
                var avro = DecoderFactory.get().binaryDecoder(record.value(), 5, record.value().length - 5, null);
                var event = new GenericDatumReader<GenericRecord>(schemas.get(id)).read(null, avro);
                if (!seen.add(event.get("event_id"))) continue; // a repeat: the first event with an id is the truth
                for (var field : event.getSchema().getFields())
                    if (event.get(field.pos()) instanceof ByteBuffer) event.put(field.pos(), ByteBuffer.allocate(0));
                System.out.println(record.topic() + " " + record.partition() + " " + record.offset() + " " + event);
            }
        }
    }
}
