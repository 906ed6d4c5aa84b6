"""Only files inside the read roots are served, judged by the descriptor that is read.

If these fail, anyone who may register a file may read the machine's.
"""

import os
import stat

import pytest

from flystore.model.errors import InvalidRequest, MissingAsset, NoAccess, OutsideRoots, Truncated, Unreadable
from flystore.storage import PathMap, Roots


@pytest.fixture
def place(tmp_path):
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    (tmp_path / "root/x.bin").write_bytes(b"inside")
    (tmp_path / "root/sub/y.bin").write_bytes(b"deeper")
    (tmp_path / "root2/secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path


@pytest.fixture
def roots(place):
    return Roots([place / "root"])


def uri(path):
    return f"file://localhost{path}"


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def test_a_file_inside_opens_and_closes(roots, place):
    before = descriptors()
    with roots.open(uri(place / "root/x.bin")) as file:
        assert file.read(0, 6) == b"inside"
        assert file.read(2, 3) == b"sid"
        assert file.size == 6
        assert file.fingerprint[1] == 6
        assert not os.get_inheritable(file.fd)
    assert descriptors() <= before


def test_no_roots_mean_nothing_is_readable(place):
    with pytest.raises(OutsideRoots):
        Roots([]).open(uri(place / "root/x.bin"))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "secret",
        "root/../secret",
        "root/sub/../../secret",
        "root/%2e%2e/secret",
        "root/%2e%2e%2fsecret",
        "root//..//secret",
        "root2/secret",
        "root/./../root2/secret",
    ],
)
def test_what_is_outside_is_outside_whether_or_not_it_exists(roots, place, path, missing):
    if missing:
        (place / "secret").unlink()
        (place / "root2/secret").unlink()
    before = descriptors()
    with pytest.raises(OutsideRoots) as caught:
        roots.open(uri(place / path))
    assert caught.value.kind == "outside-roots"
    assert descriptors() <= before


@pytest.mark.parametrize("missing", [False, True])
def test_a_symlink_that_leads_out_is_outside(roots, place, missing):
    (place / "root/link").symlink_to(place / "secret")
    (place / "root/up").symlink_to("..")
    if missing:
        (place / "secret").unlink()
    for path in ("link", "up/secret", "sub/../link"):
        with pytest.raises(OutsideRoots):
            roots.open(uri(place / "root" / path))


def test_a_symlink_that_stays_inside_is_followed(roots, place):
    (place / "root/link").symlink_to("sub/y.bin")
    with roots.open(uri(place / "root/link")) as file:
        assert file.read(0, 6) == b"deeper"


def test_a_root_that_is_a_symlink_is_the_place_it_names(place):
    (place / "named").symlink_to(place / "root")
    with Roots([place / "named"]).open(uri(place / "named/x.bin")) as file:
        assert file.read(0, 6) == b"inside"


def test_what_counts_is_where_the_descriptor_leads(roots, place, monkeypatch):
    """The path passes every check, and is another file by the time it is opened."""
    target = place / "root/x.bin"
    true_open = os.open

    def swap_then_open(path, flags, *args):
        if path == str(target):
            target.unlink()
            target.symlink_to(place / "secret")
        return true_open(path, flags, *args)

    before = descriptors()
    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(OutsideRoots):
        roots.open(uri(target))
    assert descriptors() <= before


@pytest.fixture
def without_proc(monkeypatch):
    true_readlink = os.readlink

    def no_proc(path, **kwargs):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return true_readlink(path, **kwargs)

    monkeypatch.setattr(os, "readlink", no_proc)


def test_without_proc_a_swapped_file_is_refused_too(roots, place, monkeypatch, without_proc):
    target = place / "root/x.bin"
    true_open = os.open

    def swap_then_open(path, flags, *args):
        if path == str(target):
            target.unlink()
            target.symlink_to(place / "secret")
        return true_open(path, flags, *args)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(OutsideRoots):
        roots.open(uri(target))


def test_without_proc_an_honest_file_opens(roots, place, without_proc):
    with roots.open(uri(place / "root/x.bin")) as file:
        assert file.read(0, 6) == b"inside"


def test_a_file_that_should_be_inside_and_is_not_there_is_missing(roots, place):
    for path in ("root/none.bin", "root/none/none.bin", "root/x.bin/below", "root/no%20ne.bin"):
        with pytest.raises(MissingAsset) as caught:
            roots.open(uri(place / path))
        assert caught.value.kind == "missing-asset"


def test_pipes_devices_and_directories_are_unreadable_and_nothing_hangs(roots, place):
    os.mkfifo(place / "root/pipe")
    for path in ("pipe", "sub"):
        with pytest.raises(Unreadable, match="regular file"):
            roots.open(uri(place / "root" / path))
    with pytest.raises(Unreadable, match="regular file"):
        Roots(["/dev"]).open("file:///dev/null")


def test_a_loop_of_symlinks_is_unreadable(roots, place):
    (place / "root/a").symlink_to("b")
    (place / "root/b").symlink_to("a")
    with pytest.raises(Unreadable):
        roots.open(uri(place / "root/a"))


def test_refused_permission_has_a_word_of_its_own_and_is_not_missing(roots, place, monkeypatch):
    true_open = os.open

    def deny(path, flags, *args):
        if str(path).endswith("x.bin"):
            raise PermissionError(13, "Permission denied")
        return true_open(path, flags, *args)

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(NoAccess, match="may not be read by the user that this service runs as"):
        roots.open(uri(place / "root/x.bin"))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a%00b"])
def test_impossible_names_are_invalid_requests(roots, place, name):
    with pytest.raises(InvalidRequest):
        roots.open(uri(place / "root") + "/" + name)


def test_raw_and_percent_encoded_uris_both_open(roots, place):
    (place / "root/a b#%.bin").write_bytes(b"1")
    for name in ("a b#%.bin", "a%20b%23%25.bin"):
        with roots.open(uri(place / "root") + "/" + name) as file:
            assert file.read(0, 1) == b"1"


def test_the_literal_name_wins_over_the_decoded_one(roots, place):
    (place / "root/a%20b").write_bytes(b"literal")
    (place / "root/a b").write_bytes(b"decoded")
    with roots.open(uri(place / "root") + "/a%20b") as file:
        assert file.read(0, 7) == b"literal"


def test_mapped_names_open_and_cannot_climb_out(place):
    roots = Roots([place / "root"], [PathMap.parse(f"C:\\data={place}/root")])
    with roots.open("C:\\DATA\\sub\\y.bin") as file:
        assert file.read(0, 6) == b"deeper"
    with pytest.raises(OutsideRoots):
        roots.open("C:\\data\\..\\secret")


def test_messages_name_the_uri_and_no_path_of_the_server(place):
    roots = Roots([place / "root"], [PathMap.parse(f"/ioc={place}/root")])
    for name in ("none.bin", "sub", "../secret"):
        with pytest.raises((MissingAsset, Unreadable, OutsideRoots)) as caught:
            roots.open(f"file://localhost/ioc/{name}")
        assert str(place) not in caught.value.message
        assert str(place) not in str(caught.value.facts)


def test_below_a_directory_means_below_it(roots, place):
    (place / "root/sub/out").symlink_to(place / "root/x.bin")
    with roots.open_below(uri(place / "root"), "sub/y.bin") as file:
        assert file.read(0, 6) == b"deeper"
    for relative in ("../x.bin", "/x.bin", "", "sub/../../root2/secret", "..\\x.bin", "a\0b"):
        with pytest.raises(InvalidRequest):
            roots.open_below(uri(place / "root/sub"), relative)
    with pytest.raises(OutsideRoots):
        roots.open_below(uri(place / "root/sub"), "out")
    with pytest.raises(MissingAsset):
        roots.open_below(uri(place / "root/sub"), "none")


def test_listing_shows_regular_files_that_may_be_read(roots, place):
    (place / "root/out").symlink_to(place / "secret")
    (place / "root/in").symlink_to("x.bin")
    assert dict(roots.list_files(uri(place / "root"))) == {"x.bin": 6, "in": 6}
    with pytest.raises(OutsideRoots):
        list(roots.list_files(uri(place / "root2")))
    with pytest.raises(MissingAsset):
        list(roots.list_files(uri(place / "root/none")))


def test_reading_past_the_end_is_truncated_with_counts(roots, place):
    with roots.open(uri(place / "root/x.bin")) as file:
        with pytest.raises(Truncated) as caught:
            file.read(4, 10**15)
        assert (caught.value.announced, caught.value.found) == (4 + 10**15, 6)
        with pytest.raises(Truncated):
            file.read_into(4, bytearray(10))


def test_a_stream_has_its_own_position(roots, place):
    with roots.open(uri(place / "root/x.bin")) as file:
        one, two = file.stream(), file.stream()
        assert one.read(2) == b"in"
        assert two.read() == b"inside"
        assert one.seek(-2, os.SEEK_END) == 4
        assert one.read() == b"de"
        assert not one.writable()
        one.close()
        assert stat.S_ISREG(os.fstat(file.fd).st_mode)
