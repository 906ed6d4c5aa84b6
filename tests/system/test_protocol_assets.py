"""The files behind a node come as they are, whole or in ranges, and no request reads another file.

If these fail, `raw_export` of the Tiled client misses files, or a stranger reads the password file.
"""

import email
import json
import os
import re
import threading
from pathlib import Path

import bluesky.plans as bp
import numpy as np
import pytest
import urllib3
import zarr
from bluesky_tiled_plugins import TiledWriter
from ophyd.sim import hw
from tiled.structures.bytes import BytesStructure
from tiled.structures.data_source import Asset, DataSource, Management

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def home(server):
    with server.tiled() as client:
        yield client.create_container("basement")


@pytest.fixture
def get(server):
    pool = urllib3.PoolManager(retries=False)

    def asked(path, headers=None, **fields):
        headers = {"Authorization": f"Apikey {server.key}", **(headers or {})}
        return pool.request("GET", f"{server.url}/api/v1/asset/{path}", fields=fields, headers=headers)

    yield asked
    pool.clear()


def registered(home, path, key="b", *, is_directory=False, uri=None):
    asset = Asset(data_uri=uri or f"file://localhost{path}", is_directory=is_directory, parameter="data_uri", num=None)
    source = DataSource(
        structure_family="bytes",
        structure=BytesStructure(),
        mimetype="application/octet-stream",
        management=Management.external,
        assets=[asset],
    )
    return home.new("bytes", [source], key=key)


def asset_id(node):
    return node.include_data_sources().data_sources()[0].assets[0].id


@pytest.fixture
def file(server, home):
    path = server.data / "one.bin"
    path.write_bytes(CONTENT)
    os.utime(path, (1e9, 1e9))
    return registered(home, path)


@pytest.fixture
def tree(server, home):
    """A directory with files at several depths, a hidden one, and links that lead in and out."""
    top = server.data / "top"
    (top / "a" / "deep").mkdir(parents=True)
    (top / "a" / "deep" / "é x.bin").write_bytes(b"deep")
    (top / ".zarray").write_bytes(b"{}")
    (top / "empty").write_bytes(b"")
    (top / "inside").symlink_to(top / "empty")
    (server.data / "secret").write_bytes(b"not yours")
    (top / "out").symlink_to(server.data / "secret")
    (top / "passwords").symlink_to("/etc/passwd")
    (top / "up").symlink_to(server.data)
    os.mkfifo(top / "pipe")
    return registered(home, top, "tree", is_directory=True)


def memory_peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def files_of(mapping):
    return {name: found.getvalue() for name, found in mapping.items()}


# --------------------------------------------------------------------------- what the stock client does


def test_a_file_is_exported_under_its_name(server, home, file, tmp_path):
    found = {}
    file.raw_export(found)
    assert files_of(found) == {"one.bin": CONTENT}
    (path,) = file.raw_export(tmp_path / "out")
    assert path == tmp_path / "out" / "one.bin"
    assert path.read_bytes() == CONTENT
    assert type(home["b"]).__name__ == "BytesClient"


@pytest.mark.parametrize("name", ["é ü.bin", "a b.bin", "100% sure#1?.bin", "x" * 200, "semi;colon.bin"])
def test_files_keep_their_names(server, home, name):
    (server.data / name).write_bytes(b"x")
    node = registered(
        home, server.data / name, uri=(server.data / name).as_uri().replace("file://", "file://localhost")
    )
    found = {}
    node.raw_export(found)
    assert files_of(found) == {name: b"x"}


def test_letters_that_a_header_cannot_hold_are_replaced(server, home, get):
    (server.data / 'a"b\n.bin').write_bytes(b"x")
    node = registered(home, server.data / 'a"b\n.bin')
    answer = get("bytes/basement/b", id=asset_id(node))
    assert answer.headers["content-disposition"] == 'attachment; filename="a_b_.bin"'


def test_a_directory_is_exported_with_all_that_is_in_it(tree, tmp_path):
    found = {}
    tree.raw_export(found)
    assert files_of(found) == {".zarray": b"{}", "a/deep/é x.bin": b"deep", "empty": b"", "inside": b""}
    tree.raw_export(tmp_path / "out")
    assert (tmp_path / "out" / "a" / "deep" / "é x.bin").read_bytes() == b"deep"


def test_an_array_of_ours_is_exported_as_zarr(home, tmp_path):
    values = np.arange(24.0).reshape(4, 6)
    node = home.write_array(values, key="a", dims=["y", "x"])
    node.raw_export(tmp_path / "a.zarr")
    assert (zarr.open_array(tmp_path / "a.zarr", mode="r")[...] == values).all()
    assert not list((tmp_path / "a.zarr").rglob(".*"))


def test_a_store_that_was_moved_exports_its_arrays(server, home, tmp_path):
    from flystore.service import Service

    node = home.write_array(np.arange(4), key="a")
    number = asset_id(node)
    server.service.close()
    server.directory.rename(tmp_path / "moved")
    with Service.open(tmp_path / "moved") as service:
        assert "zarr.json" in service.assets.manifest(("basement", "a"), number)
        opened, name = service.assets.open(("basement", "a"), number, "zarr.json")
        with opened:
            assert name == "zarr.json"
            assert json.loads(opened.read(0, opened.size))["shape"] == [4]
    (tmp_path / "moved").rename(server.directory)


def test_the_files_of_a_run_are_exported(server, recorded):
    documents = recorded(bp.count([hw(save_path=str(server.data)).img], 3))
    with server.tiled() as client:
        writer = TiledWriter(client)
        for name, doc in documents:
            writer(name, doc)
        node = client[documents[0][1]["uid"]]["primary"]["img"]
        found = {}
        node.raw_export(found)
    assert sorted(len(content) for content in files_of(found).values()) == sorted(
        path.stat().st_size for path in server.data.rglob("*.npy")
    )


def test_the_files_of_a_run_made_from_documents_are_exported(server, recorded):
    from flystore.writer import RunWriter

    documents = recorded(bp.count([hw(save_path=str(server.data)).img], 3))
    with RunWriter(server.url, api_key=server.key, journal=server.directory.parent / "journal") as writer:
        for name, doc in documents:
            writer(name, doc)
        writer.flush(timeout=100)
    with server.tiled() as client:
        node = client[documents[0][1]["uid"]]["primary"]["img"]
        found = {}
        node.raw_export(found)
        ids = [asset.id for asset in node.include_data_sources().data_sources()[0].assets]
    assert len(set(ids)) == len(ids) == len(found) == 3
    written = sorted(path.read_bytes() for path in server.data.rglob("*.npy"))
    assert sorted(files_of(found).values()) == written


# --------------------------------------------------------------------------- ranges and validators


def test_answers_carry_what_resuming_needs(file, get):
    answer = get("bytes/basement/b", id=asset_id(file))
    assert answer.status == 200
    assert answer.data == CONTENT
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert re.fullmatch(r'"[0-9a-f]+"', answer.headers["etag"])
    assert answer.headers["last-modified"].endswith("GMT")
    # What the client takes the name from.
    assert re.match(r"^attachment; ?filename=\"(.*)\"$", answer.headers["content-disposition"])[1] == "one.bin"


@pytest.mark.parametrize(
    ("asked", "expected"), [("0-99", slice(0, 100)), ("-5", slice(-5, None)), ("1279990-", slice(1279990, None))]
)
def test_a_range_is_that_part_of_the_file(file, get, asked, expected):
    answer = get("bytes/basement/b", {"Range": f"bytes={asked}"}, id=asset_id(file))
    assert answer.status == 206
    assert answer.data == CONTENT[expected]
    first, last, size = map(int, re.findall(r"\d+", answer.headers["content-range"]))
    assert (size, last - first + 1) == (len(CONTENT), len(answer.data))


def test_several_ranges_come_in_one_answer(file, get):
    answer = get("bytes/basement/b", {"Range": "bytes=0-9,500-509,-3"}, id=asset_id(file))
    assert answer.status == 206
    assert int(answer.headers["content-length"]) == len(answer.data)
    message = email.message_from_bytes(
        b"content-type: " + answer.headers["content-type"].encode() + b"\r\n" + answer.data
    )
    parts = [part.get_payload(decode=True) for part in message.get_payload()]
    assert parts == [CONTENT[:10], CONTENT[500:510], CONTENT[-3:]]


def test_a_range_beyond_the_file_says_how_long_it_is(file, get):
    answer = get("bytes/basement/b", {"Range": "bytes=99999999-"}, id=asset_id(file))
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert answer.headers["content-type"] == "application/json"


def test_very_many_ranges_are_no_work(file, get):
    ranges = ",".join(f"{n}-{n}" for n in range(0, 6000, 2))
    answer = get("bytes/basement/b", {"Range": f"bytes={ranges}"}, id=asset_id(file))
    assert answer.status == 200
    assert len(answer.data) == len(CONTENT)


def test_a_file_that_is_known_is_not_sent_again(server, file, get):
    os.utime(server.data / "one.bin", (1_700_000_000, 1_700_000_000))
    number = asset_id(file)
    etag = get("bytes/basement/b", id=number).headers["etag"]
    again = get("bytes/basement/b", {"If-None-Match": etag}, id=number)
    assert (again.status, again.data) == (304, b"")
    assert again.headers["etag"] == etag
    resumed = get("bytes/basement/b", {"Range": "bytes=5-", "If-Range": etag}, id=number)
    assert (resumed.status, resumed.data) == (206, CONTENT[5:])
    (server.data / "one.bin").write_bytes(b"other")
    changed = get("bytes/basement/b", {"If-None-Match": etag, "Range": "bytes=0-1", "If-Range": etag}, id=number)
    assert (changed.status, changed.data) == (200, b"other")
    young = {"If-None-Match": changed.headers["etag"]}
    assert get("bytes/basement/b", young, id=number).status == 200, "it may change again before its clock ticks"


def test_a_file_that_was_just_written_is_known_by_nothing(server, file, get):
    """It may be written to again within one tick of its clock, and nobody could tell."""
    number = asset_id(file)
    os.utime(server.data / "one.bin")
    first = get("bytes/basement/b", id=number).headers
    for known in ({"If-None-Match": first["etag"]}, {"If-Modified-Since": first["last-modified"]}):
        assert get("bytes/basement/b", known, id=number).status == 200
    for state in (first["etag"], first["last-modified"]):
        assert get("bytes/basement/b", {"Range": "bytes=5-", "If-Range": state}, id=number).status == 200


def test_an_empty_file_is_an_empty_answer(server, home, get):
    (server.data / "none").touch()
    answer = get("bytes/basement/b", id=asset_id(registered(home, server.data / "none")))
    assert (answer.status, answer.data, answer.headers["content-length"]) == (200, b"", "0")


def test_large_files_are_sent_from_little_memory(server, home, get):
    path = server.data / "large"
    with path.open("wb") as sparse_file:
        sparse_file.truncate(400 << 20)
    node = registered(home, path)
    number = asset_id(node)
    get("bytes/basement/b", {"Range": "bytes=0-1"}, id=number)
    sizes = []

    def load():
        pool = urllib3.PoolManager(retries=False)
        answer = pool.request(
            "GET",
            f"{server.url}/api/v1/asset/bytes/basement/b?id={number}",
            headers={"Authorization": f"Apikey {server.key}"},
            preload_content=False,
        )
        sizes.append(sum(map(len, answer.stream(1 << 20))))
        answer.release_conn()
        pool.clear()

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    before = memory_peak()
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [400 << 20] * 3
    assert memory_peak() - before < 100 << 20


def test_nothing_stays_open_when_a_client_goes_away(server, home):
    path = server.data / "large"
    with path.open("wb") as sparse_file:
        sparse_file.truncate(1 << 30)
    number = asset_id(registered(home, path))
    for _ in range(3):
        pool = urllib3.PoolManager(retries=False)
        answer = pool.request(
            "GET",
            f"{server.url}/api/v1/asset/bytes/basement/b?id={number}",
            headers={"Authorization": f"Apikey {server.key}"},
            preload_content=False,
        )
        answer.read(1000)
        answer.close()
        pool.clear()
    ended = threading.Event()
    for _ in range(2000):
        if not any(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir()):
            break
        ended.wait(0.05)
    else:
        pytest.fail("the file is still open")


# --------------------------------------------------------------------------- what may not be had


@pytest.mark.parametrize(
    ("relative", "status"),
    [
        ("../secret", 400),
        ("a/../../secret", 400),
        ("/etc/passwd", 400),
        ("a\\..\\secret", 400),
        ("a\0b", 400),
        ("", 400),
        ("..", 400),
        ("out", 403),
        ("passwords", 403),
        ("up/secret", 403),
        ("nothing", 404),
        ("a", 422),
        ("pipe", 422),
        ("x" * 5000, 400),
    ],
)
def test_no_path_leads_out_of_a_directory(tree, get, relative, status):
    answer = get("bytes/basement/tree", id=asset_id(tree), relative_path=relative)
    assert answer.status == status, answer.data
    assert b"not yours" not in answer.data
    assert b"root:" not in answer.data


def test_a_directory_needs_a_path_and_a_file_takes_none(tree, file, get):
    assert get("bytes/basement/tree", id=asset_id(tree)).status == 400
    assert get("bytes/basement/b", id=asset_id(file), relative_path="x").status == 400
    assert get("manifest/basement/b", id=asset_id(file)).status == 400
    assert get("manifest/basement/tree", id=asset_id(tree)).json() == {
        "manifest": [".zarray", "a/deep/é x.bin", "empty", "inside"]
    }


def test_an_asset_belongs_to_its_node(home, tree, file, get):
    for route in ("bytes", "manifest"):
        assert get(f"{route}/basement/tree", id=asset_id(file)).status == 404
        assert get(f"{route}/basement/b", id=10**12).status == 404
        assert get(f"{route}/basement/b", id=-1).status == 422
        assert get(f"{route}/basement/b").status == 422
        assert get(f"{route}/basement/nothing", id=1).status == 404
        assert get(f"{route}/basement", id=1).status == 405
        assert get(f"{route}/", id=1).status == 405


def test_files_of_ours_beside_the_data_are_not_served(home, server, get):
    node = home.write_array(np.arange(4), key="a")
    number = asset_id(node)
    assert get("bytes/basement/a", id=number, relative_path="zarr.json").status == 200
    for path in (".written", "c/.writing-x", "../catalog.sqlite", "../../catalog.sqlite"):
        assert get("bytes/basement/a", id=number, relative_path=path).status in (400, 404)


def test_files_outside_the_roots_are_not_served(home, server, get):
    node = registered(home, "/etc/passwd", "p")
    answer = get("bytes/basement/p", id=asset_id(node))
    assert answer.status == 403
    assert answer.json()["error"]["kind"] == "outside-roots"
    (server.data / "link").symlink_to("/etc/passwd")
    node = registered(home, server.data / "link", "l")
    assert get("bytes/basement/l", id=asset_id(node)).status == 403
    node = registered(home, server.directory, "s", is_directory=True)
    assert get("manifest/basement/s", id=asset_id(node)).status == 403
    node = registered(home, server.directory / "catalog.sqlite", "c")
    assert get("bytes/basement/c", id=asset_id(node)).status == 403


def test_a_file_that_is_gone_says_so(server, file, get):
    (server.data / "one.bin").unlink()
    answer = get("bytes/basement/b", id=asset_id(file))
    assert answer.status == 422
    assert answer.json()["error"]["kind"] == "missing-asset"


def test_a_file_name_that_is_no_text_is_not_passed_over(server, home, get):
    top = server.data / "odd"
    top.mkdir()
    (Path(os.fsdecode(bytes(top) + b"/\xff.bin"))).write_bytes(b"x")
    node = registered(home, top, "odd", is_directory=True)
    answer = get("manifest/basement/odd", id=asset_id(node))
    assert answer.status == 422
    assert "no text" in answer.json()["detail"]


def test_without_a_key_nothing_is_had(server, file):
    pool = urllib3.PoolManager(retries=False)
    for route in ("bytes", "manifest"):
        answer = pool.request("GET", f"{server.url}/api/v1/asset/{route}/basement/b?id={asset_id(file)}")
        assert answer.status == 401
    pool.clear()
