// Opens what is sealed in events: new Opener("http://127.0.0.1:8080", KEY).open(event) (see docs/privacy.md).
import com.fasterxml.jackson.databind.*;
import com.fasterxml.jackson.databind.node.MissingNode;
import java.net.URI;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.util.*;
import javax.crypto.Cipher;
import javax.crypto.spec.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.io.DecoderFactory;

class Opener {
    private final Map<String, JsonNode> keys = new HashMap<>();
    private final String api, apiKey;

    Opener(String api, String apiKey) { this.api = api; this.apiKey = apiKey; }

    /** The event with its personal fields; as it is where nothing is sealed, or the call was erased. */
    GenericRecord open(GenericRecord event) throws Exception {
        var schema = event.getSchema();
        var session = event.get("session_id").toString();
        if (event.hasField("kind") && event.get("kind").toString().equals("erase")) keys.remove(session); // forget the call
        if (!event.hasField("sealed") || !((ByteBuffer) event.get("sealed")).hasRemaining()) return event;
        var with = schema.getProp("sealed_with") == null ? "words" : schema.getProp("sealed_with");
        var key = keysOf(session).path(with);
        if (key.isMissingNode()) return event;
        var sealed = new byte[((ByteBuffer) event.get("sealed")).remaining()];
        ((ByteBuffer) event.get("sealed")).duplicate().get(sealed);
        var cipher = Cipher.getInstance("AES/GCM/NoPadding");
        cipher.init(Cipher.DECRYPT_MODE, new SecretKeySpec(key.binaryValue(), "AES"), new GCMParameterSpec(128, sealed, 0, 12));
        cipher.updateAAD((session + "/" + event.get("event_id")).getBytes("UTF-8"));
        var plain = DecoderFactory.get().binaryDecoder(cipher.doFinal(sealed, 12, sealed.length - 12), null);
        var fields = schema.getFields().stream().filter(field -> Boolean.TRUE.equals(field.getObjectProp("pii"))).toList();
        var copies = fields.stream().map(field -> new Schema.Field(field, field.schema())).toList();
        var personal = Schema.createRecord(schema.getName(), null, schema.getNamespace(), false, copies);
        var read = new GenericDatumReader<GenericRecord>(personal).read(null, plain);
        for (var field : fields) event.put(field.pos(), read.get(field.name()));
        event.put("sealed", ByteBuffer.allocate(0));
        return event;
    }

    private JsonNode keysOf(String session) throws Exception {
        if (!keys.containsKey(session)) {
            var request = HttpRequest.newBuilder(URI.create(api + "/v1/sessions/" + session + "/keys"));
            if (!apiKey.isEmpty()) request.header("X-API-Key", apiKey);
            var answer = HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
            var none = answer.statusCode() == 404 || answer.statusCode() == 410; // unknown, erased
            if (answer.statusCode() != 200 && !none) throw new IllegalStateException("keys: HTTP " + answer.statusCode());
            keys.put(session, none ? MissingNode.getInstance() : new ObjectMapper().readTree(answer.body()).path("keys"));
        }
        return keys.get(session);
    }
}
