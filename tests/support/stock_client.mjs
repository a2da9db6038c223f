// Asks with the unmodified @clickhouse/client what the JSON on the standard input says; prints the rows as JSON.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { createClient } = createRequire(process.cwd() + '/')('@clickhouse/client')
const { url, username, password, database, queries } = JSON.parse(readFileSync(0, 'utf8'))
const client = createClient({ url, username, password, database })
const answers = {}
const settings = { output_format_json_quote_64bit_integers: 0 }
for (const [name, query] of Object.entries(queries)) {
  const found = await client.query({ query, format: 'JSONCompactEachRow', clickhouse_settings: settings })
  answers[name] = await found.json()
}
const bound = await client.query({
  query: 'SELECT {n: UInt32} + 1 AS n, {s: String} AS s', query_params: { n: 41, s: "it's" }, format: 'JSONEachRow',
})
answers.bound = await bound.json()
answers.ping = (await client.ping()).success
answers.refused = await client.command({ query: 'DROP TABLE sessions' }).then(() => '', (error) => error.type)
await client.close()
console.log(JSON.stringify(answers))
