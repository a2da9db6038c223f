// Prints what AsyncAPI's own parser says of a document, as JSON: `node asyncapi.mjs FILE`.
import { readFileSync } from "node:fs";
import { AvroSchemaParser } from "@asyncapi/avro-schema-parser";
import { Parser } from "@asyncapi/parser";

const parser = new Parser();
parser.registerSchemaParser(AvroSchemaParser());
const { document, diagnostics } = await parser.parse(readFileSync(process.argv[2], "utf8"));
const payloads = (document?.allMessages().all() ?? []).map((message) => [message.name(), message.payload().json()]);
console.log(JSON.stringify({ diagnostics, payloads: Object.fromEntries(payloads) }));
