// Opens what is sealed in events: `await new Opener("http://127.0.0.1:8080", KEY).open(event, schema)` (docs/privacy.md).
// It needs `npm install avsc`.
import avro from "avsc";
import { createDecipheriv } from "node:crypto";

export class Opener {
  constructor(api, apiKey = "") {
    Object.assign(this, { api, headers: apiKey ? { "X-API-Key": apiKey } : {}, keys: new Map() });
  }

  // The event with its personal fields; as it is where nothing is sealed, or the call was erased.
  async open(event, schema) {
    if (event.kind === "erase") this.keys.delete(event.session_id); // forget the call
    if (!event.sealed?.length) return event;
    const key = (await this.keysOf(event.session_id))[schema.sealed_with ?? "words"];
    if (!key) return event;
    const decipher = createDecipheriv("aes-256-gcm", Buffer.from(key, "base64"), event.sealed.subarray(0, 12));
    decipher.setAAD(Buffer.from(`${event.session_id}/${event.event_id}`)).setAuthTag(event.sealed.subarray(-16));
    const plain = Buffer.concat([decipher.update(event.sealed.subarray(12, -16)), decipher.final()]);
    const personal = { ...schema, fields: schema.fields.filter((field) => field.pii) };
    return { ...event, ...avro.Type.forSchema(personal).fromBuffer(plain), sealed: Buffer.alloc(0) };
  }

  async keysOf(sessionId) {
    if (!this.keys.has(sessionId)) {
      const answer = await fetch(`${this.api}/v1/sessions/${sessionId}/keys`, { headers: this.headers });
      if (!answer.ok && ![404, 410].includes(answer.status)) throw new Error(`keys: HTTP ${answer.status}`);
      this.keys.set(sessionId, answer.ok ? (await answer.json()).keys : {}); // 404: unknown, 410: erased
    }
    return this.keys.get(sessionId);
  }
}
