// Asks with @clickhouse/client what a JSON file says, prints the rows as JSON: `node clickhouse.mjs FILE`.
import { readFileSync } from "node:fs";
import { createClient } from "@clickhouse/client";

const { url, username, password, database, queries } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const client = createClient({ url, username, password, database });
const answers = {};
const settings = { output_format_json_quote_64bit_integers: 0 };
for (const [name, query] of Object.entries(queries)) {
  const found = await client.query({ query, format: "JSONCompactEachRow", clickhouse_settings: settings });
  answers[name] = await found.json();
}
const bound = await client.query({
  query: "SELECT {n: UInt32} + 1 AS n, {s: String} AS s", query_params: { n: 41, s: "it's" }, format: "JSONEachRow",
});
answers.bound = await bound.json();
answers.ping = (await client.ping()).success;
answers.refused = await client.command({ query: "DROP TABLE sessions" }).then(() => "", (error) => error.type);
await client.close();
console.log(JSON.stringify(answers));
