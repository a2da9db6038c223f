// Prints the events in the records given in hexadecimal, opened: API, API_KEY, RECORD...
import { SchemaRegistry } from "@kafkajs/confluent-schema-registry";
import { Opener } from "./opener.mjs";

const [api, apiKey, ...records] = process.argv.slice(2);
const auth = { username: "any", password: apiKey };
const registry = new SchemaRegistry({ host: `${api}/registry`, auth });
const opener = new Opener(api, apiKey);
for (const record of records) {
  const value = Buffer.from(record, "hex");
  const url = `${api}/registry/schemas/ids/${value.readUInt32BE(1)}/schema`;
  const schema = await (await fetch(url, { headers: { "X-API-Key": apiKey } })).json();
  console.log(JSON.stringify(await opener.open(await registry.decode(value), schema)));
}
