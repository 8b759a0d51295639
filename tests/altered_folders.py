"""A published folder as whoever altered it would leave it."""

import json

from hf_safefilter.storage.artifacts import file_sha256


def described(folder):
    """State the digests and sizes that the files have now."""
    record = json.loads((folder / "croissant.json").read_text())
    for entry in record["distribution"]:
        entry["sha256"] = file_sha256(folder / entry["name"])
        entry["contentSize"] = f"{(folder / entry['name']).stat().st_size} B"
    (folder / "croissant.json").write_text(json.dumps(record, indent=2) + "\n")
