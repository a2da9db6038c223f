// Prints the events of every call, each once: `node consumer.mjs BOOTSTRAP_SERVERS [REGISTRY_URL [GROUP]]`.
// It needs `npm install kafkajs @kafkajs/confluent-schema-registry`.
import { SchemaRegistry } from "@kafkajs/confluent-schema-registry";
import { Kafka, logLevel } from "kafkajs";

const TOPICS = "sessions audio.in transcripts intents responses audio.out control assist deadletters deliveries".split(" ");

const [brokers, host = "http://127.0.0.1:8080/registry", groupId = "my-first-consumer"] = process.argv.slice(2);
const registry = new SchemaRegistry({ host });
const kafka = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
const consumer = kafka.consumer({ groupId });
const seen = new Set();

process.on("SIGINT", () => consumer.disconnect());
await consumer.connect();
await consumer.subscribe({ topics: TOPICS.map((name) => `voice.${name}`), fromBeginning: true });
await consumer.run({
  eachMessage: async ({ topic, partition, message }) => {
    const event = await registry.decode(message.value);
    if (seen.has(event.event_id)) return; // a repeat: the first event with an id is the truth
    seen.add(event.event_id);
    const words = Object.entries(event).filter(([, value]) => value && !Buffer.isBuffer(value));
    console.log(topic, partition, message.offset, JSON.stringify(Object.fromEntries(words)));
  },
});
