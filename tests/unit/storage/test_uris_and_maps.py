"""Whatever a writer calls a file, the service looks for the right one.

If these fail, runs are stored whose files are never found, or the wrong file is served.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, Misconfigured, OutsideRoots, Unsupported
from flystore.storage import PathMap, Roots, candidate_paths, uri_of_path


@pytest.mark.parametrize(
    ("uri", "paths"),
    [
        ("file://localhost/data/x.h5", ("/data/x.h5",)),
        ("file:///data/x.h5", ("/data/x.h5",)),
        ("file:/data/x.h5", ("/data/x.h5",)),
        ("FILE://LOCALHOST/data/x.h5", ("/data/x.h5",)),
        ("file://localhost//data/x.h5", ("/data/x.h5",)),
        ("file://localhost/data/a b.h5", ("/data/a b.h5",)),
        ("file://localhost/data/a%20b.h5", ("/data/a%20b.h5", "/data/a b.h5")),
        ("file://localhost/data/50%.h5", ("/data/50%.h5",)),
        ("file://localhost/data/a#b?c.h5", ("/data/a#b?c.h5",)),
        ("file://localhost/data/µ.h5", ("/data/µ.h5",)),
        ("file://localhost/data/%C2%B5.h5", ("/data/%C2%B5.h5", "/data/µ.h5")),
        ("/data/x.h5", ("/data/x.h5",)),
        ("C:\\data\\x.h5", ("C:\\data\\x.h5",)),
        ("C:/data/x.h5", ("C:/data/x.h5",)),
        ("file://localhost/C:/data/x.h5", ("C:/data/x.h5",)),
        ("file:///C:/data/x.h5", ("C:/data/x.h5",)),
        ("file:///C:\\data\\x.h5", ("C:\\data\\x.h5",)),
        ("file://C:/data/x.h5", ("C:/data/x.h5",)),
        ("\\\\server\\share\\x.h5", ("\\\\server\\share\\x.h5",)),
        ("file://server/share/x.h5", ("\\\\server\\share\\x.h5",)),
    ],
)
def test_every_form_in_the_field_is_understood(uri, paths):
    assert candidate_paths(uri) == paths


@pytest.mark.parametrize("uri", ["https://x/y.h5", "gs://bucket/key", "sqlite:///x.db", "data:x"])
def test_other_schemes_are_unsupported(uri):
    with pytest.raises(Unsupported):
        candidate_paths(uri)


@pytest.mark.parametrize(
    "uri", ["", "x.h5", "../x.h5", "file:x.h5", "file://localhost", "/a\0b", "/a%00b", "/" + "x" * 10_000]
)
def test_what_is_no_absolute_path_is_an_invalid_request(uri):
    with pytest.raises(InvalidRequest):
        candidate_paths(uri)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_our_own_uris_mean_their_path(name):
    path = "/data/" + name
    assert candidate_paths(uri_of_path(path))[-1] == path


@pytest.mark.parametrize(
    ("text", "path", "here"),
    [
        ("C:\\data=/mnt/data", "C:\\data\\scan\\x.h5", "/mnt/data/scan/x.h5"),
        ("C:\\data=/mnt/data", "c:/DATA/Scan/x.h5", "/mnt/data/Scan/x.h5"),
        ("C:\\data\\=/mnt/data/", "C:\\data", "/mnt/data"),
        ("\\\\srv\\share=/mnt/s", "\\\\SRV\\share\\x", "/mnt/s/x"),
        ("/ioc/data=/mnt/data", "/ioc/data/x.h5", "/mnt/data/x.h5"),
        ("/ioc/data=/", "/ioc/data/x.h5", "/x.h5"),
        ("/a=b=/c", "/a=b/x", "/c/x"),
    ],
)
def test_a_map_replaces_whole_leading_segments(text, path, here):
    assert Roots([], [PathMap.parse(text)]).here(path) == here


@pytest.mark.parametrize("path", ["/ioc/data2/x.h5", "/IOC/data/x.h5", "/other"])
def test_a_map_leaves_other_posix_paths_alone(path):
    assert Roots([], [PathMap.parse("/ioc/data=/mnt/data")]).here(path) == path


def test_the_longest_map_wins():
    maps = [PathMap.parse("C:/data=/short"), PathMap.parse("C:\\data\\deep=/long")]
    roots = Roots([], maps)
    assert roots.here("C:\\data\\deep\\x") == "/long/x"
    assert roots.here("C:\\data\\deeper\\x") == "/short/deeper/x"


def test_a_windows_path_without_a_map_is_outside_and_says_what_to_do():
    with pytest.raises(OutsideRoots, match="--map"):
        Roots([]).here("D:\\x.h5")


@pytest.mark.parametrize("text", ["", "=", "/a", "/a=", "/a=b", "a=/b", "=/b"])
def test_a_map_that_is_none_is_a_misconfiguration(text):
    with pytest.raises(Misconfigured):
        PathMap.parse(text)
