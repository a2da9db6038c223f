"""Freezes the current schemas as published versions, with the ids that records carry.

python -m schemas.publish [--check]

A schema that differs from its latest published version becomes the next version under the next id; a breaking change
is refused. `--check` only fails when something is unpublished. Files in `published/` are never edited.
"""

import json
import sys

from schemas import compatibility, files


def pending() -> list[str]:
    """Names of schemas that differ from their latest published version, sorted."""
    latest = {entry.name: entry for entry in files.published()}
    return [
        name for name in files.names() if name not in latest or files.load_published(latest[name]) != files.load(name)
    ]


def publish() -> list[files.Published]:
    """Adds what is pending and returns it; raises ValueError, and adds nothing, when a change would break."""
    broken = compatibility.missing() + [problem for name in pending() for problem in compatibility.check(name)]
    if broken:
        raise ValueError("\n".join(broken))
    entries = list(files.published())
    added = []
    for name in pending():
        versions = [entry.version for entry in entries if entry.name == name]
        entry = files.Published(
            id=max((entry.id for entry in entries), default=0) + 1,
            name=name,
            version=max(versions, default=0) + 1,
            subject=f"{files.load(name)['topic']}-value",
        )
        entries.append(entry)
        added.append(entry)
        entry.path.write_text((files.AVRO / f"{name}.avsc").read_text())
    index = {"schemas": [entry._asdict() for entry in entries]}
    files.INDEX.write_text(json.dumps(index, indent=2) + "\n")
    files.published.cache_clear()
    return added


def main() -> int:
    """Publishes, or with `--check` compares; exits 1 on a breaking change or when the check finds something."""
    if "--check" in sys.argv[1:]:
        for name in pending():
            print(f"schemas/avro/{name}.avsc is not published: run python -m schemas.publish", file=sys.stderr)
        return 1 if pending() else 0
    try:
        added = publish()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for entry in added:
        print(f"{entry.subject} version {entry.version} is id {entry.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
