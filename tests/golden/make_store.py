"""Make the golden store ``store-N``: a catalogue as this version writes it, and what is in it.

    .venv/bin/python tests/golden/make_store.py 1

Every later version must open each golden store, read it, and rebuild the same trees from its log. A store is made once,
when the stored form changes; it is never made again under the same number.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from flystore.catalog import Catalog
from flystore.model.frames import FrameEncoder, frame
from flystore.model.structures import SEGMENTS_MIMETYPE, DataSource, Family, Management, Spec, TableStructure
from flystore.service import MetadataPatch, NewNode, Service
from flystore.service.browse import everything_below
from flystore.testing.streams import by_run

HERE = Path(__file__).parent
STREAMS = HERE.parent / "data" / "streams"
CASES = ("step_internal", "internal_odd_values", "flyscan_panda", "legacy_ad_tiff", "reconfigure", "failed_run")


def main(number: str) -> None:
    place = HERE / f"store-{number}"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "store"
        with Service.open(directory) as service:
            for case in CASES:
                text = (STREAMS / case / "documents.jsonl").read_text().replace("{{root}}", "data")
                lines = [json.loads(line) for line in text.splitlines()]
                for uid, documents in by_run([(line["name"], line["doc"]) for line in lines]).items():
                    ingest(service, uid, documents)
            operate(service)
        with Catalog.open(f"sqlite:///{directory / 'catalog.sqlite'}") as catalog:
            shown = {"/".join(path): found for path, found in trees(catalog).items()}
        shutil.copy(directory / "catalog.sqlite", place / "catalog.sqlite")
    (place / "trees.json").write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n")


def ingest(service: Service, uid: str, documents: list) -> None:
    encoder = FrameEncoder()
    for first in range(0, len(documents), 5):
        some = documents[first : first + 5]
        body = b"".join(frame(payload) for name, doc in some for payload in encoder.encode(name, doc))
        service.ingest.batch(uid, first, 0, body)
        if first == 0:
            edit(service, uid)


def edit(service: Service, uid: str) -> None:
    """What people write into a run while it is going on: the documents that follow keep it."""
    told = {"start": {"sample": "ruby", "time": None}, "stop": {"reason": "as planned"}, "remark": {"by": "hand"}}
    service.nodes.patch_metadata((uid,), MetadataPatch(merge=True, metadata=told), keep_revision=True)
    more = [{"op": "add", "path": "/remark/seen", "value": None}]
    service.nodes.patch_metadata((uid,), MetadataPatch(merge=False, metadata=more), keep_revision=True)
    service.nodes.replace_metadata((uid,), None, (Spec("Demo", "1.0"), Spec("BlueskyRun", "3.0")), keep_revision=False)


def operate(service: Service) -> None:
    """What a client of the Tiled protocol does: make, append, patch, delete."""
    import pyarrow as pa

    schema = pa.schema([("x", pa.float64()), ("label", pa.string())])
    structure = TableStructure.of(schema).to_wire()
    table = DataSource(Family.TABLE, SEGMENTS_MIMETYPE, structure, management=Management.WRITABLE)
    nodes = service.nodes
    nodes.create((), NewNode("notes", Family.CONTAINER, {"by": "hand"}, (Spec("Demo", "1.0"),), ()))
    nodes.create(("notes",), NewNode("points", Family.TABLE, {}, (), (table,)))
    nodes.create(("notes",), NewNode("gone", Family.CONTAINER, {}, (), ()))
    rows = pa.table({"x": [1.0, 2.5], "label": ["a", None]}, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(rows)
    nodes.append_rows(("notes", "points"), 0, sink.getvalue().to_pybytes())
    nodes.patch_metadata(("notes",), MetadataPatch(merge=True, metadata={"color": "blue"}), keep_revision=True)
    nodes.delete(("notes", "gone"), recursive=False, external_only=True)


def trees(catalog: Catalog) -> dict[tuple[str, ...], dict]:
    """Return what readers see of every node: JSON values only."""
    with catalog.read() as snapshot:
        return {
            node.path: json.loads(
                json.dumps(
                    {
                        "family": node.family,
                        "specs": [spec.to_wire() for spec in node.specs],
                        "metadata": node.metadata,
                        "structure": node.structure,
                        "external": None if node.external is None else node.external.hex(),
                        "rows": snapshot.rows("/".join(node.path)),
                    }
                )
            )
            for node in everything_below(snapshot, ())
        }


if __name__ == "__main__":
    main(sys.argv[1])
