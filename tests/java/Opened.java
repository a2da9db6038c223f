// Prints the events in the records given in hexadecimal, opened: API, API_KEY, RECORD...
import java.net.URI;
import java.nio.ByteBuffer;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.io.DecoderFactory;

class Opened {
    public static void main(String[] args) throws Exception {
        var opener = new Opener(args[0], args[1]);
        for (var text : Arrays.copyOfRange(args, 2, args.length)) {
            var value = HexFormat.of().parseHex(text);
            var url = URI.create(args[0] + "/registry/schemas/ids/" + ByteBuffer.wrap(value).getInt(1) + "/schema").toURL();
            var connection = url.openConnection();
            connection.setRequestProperty("X-API-Key", args[1]);
            var schema = new Schema.Parser().parse(connection.getInputStream());
            var avro = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
            System.out.println(opener.open(new GenericDatumReader<GenericRecord>(schema).read(null, avro)));
        }
    }
}
