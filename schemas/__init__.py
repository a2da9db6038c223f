"""The event contracts. Avro files in `avro/` are the source; everything else here is made from them."""
