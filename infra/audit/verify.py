"""Verifies a call that `trunkline audit export` wrote, without Trunkline: python verify.py [TRUSTED_KEY.pem ...]"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_public_key

HERE = Path(__file__).resolve().parent
loaded = (load_pem_public_key(Path(name).read_bytes()) for name in sys.argv[1:] or HERE.glob("keys/*.pem"))
keys = {key.public_bytes_raw(): key for key in loaded}
lines = {path.stem: [json.loads(line) for line in path.open(encoding="utf-8")] for path in HERE.glob("*.jsonl")}
tracks = {path.name: path.read_bytes() for path in HERE.glob("*.wav")}
ends, links, contents, signed = {}, {}, {}, {}


def sha(*parts):  # each part comes behind its length; numbers are written in digits
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def verify(data, signature):  # raises KeyError for a key that is not trusted, InvalidSignature for another text
    keys[base64.b64decode(signature["public_key"])].verify(base64.b64decode(signature["value"]), data)


verify((HERE / "manifest.json").read_bytes(), json.loads((HERE / "manifest.sig").read_bytes()))
for name, digest in json.loads((HERE / "manifest.json").read_bytes())["files"].items():
    assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == digest, f"{name} is not what was exported"
for key, topic, partition, offset, position, digest, link, content in lines["chain"]:
    if content is not None:  # null where retention has taken the record
        contents[topic, offset] = base64.b64decode(content)
        assert hashlib.sha256(contents[topic, offset]).hexdigest() == digest, f"{topic}@{offset} was altered"
    count, last = ends.get((key, topic, partition), (0, bytes(32)))
    found = sha(last, count + 1, topic, partition, offset, bytes.fromhex(digest))
    assert (position, link) == (count + 1, found.hex()), f"{topic}@{offset} is not in its place"
    ends[key, topic, partition], links[key, topic, partition, position] = (position, found), (offset, link)
for one in lines["checkpoints"]:  # what was signed of this call, and what leads from there to the signed root
    verify(one["statement"].encode(), one["signature"])
    for key, topic, partition, position, offset, link, path in one["heads"]:
        assert links.get((key, topic, partition, position)) == (offset, link), f"{topic}@{offset} is not as signed"
        node = hashlib.sha256(b"\0" + sha(key, topic, partition, position, offset, bytes.fromhex(link)))
        for left, right in path:  # one of the two is null: the node that is known
            node = hashlib.sha256(b"\1" + b"".join(bytes.fromhex(x) if x else node.digest() for x in (left, right)))
        assert node.hexdigest() == json.loads(one["statement"])["root"], f"{topic}@{offset}: another root was signed"
        signed[key, topic, partition] = max(position, signed.get((key, topic, partition), 0))
for file, at, topic, offset, start, end in lines["audio"]:
    assert tracks[file][at : at + end - start] == contents[topic, offset][start:end], f"{file} is not {topic}@{offset}"
print(f"Verified: {len(links)} records, {sum(signed.values())} of them signed. Is keys/ what you got elsewhere?")
