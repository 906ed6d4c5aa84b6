"""Importing flystore stays light, and every name it promises is there.

If these fail, a session at a beamline waits for libraries it does not use, or a plain install, without
the server's and the scientists' libraries, cannot even be imported.
"""

import subprocess
import sys

import pytest

import flystore
from flystore.model.late import late

SCIENCE = ["xarray", "pandas", "dask"]
SERVER = ["sqlalchemy", "starlette", "uvicorn", "h5py", "zarr", "numcodecs"]
PEERS = ["tiled", "bluesky", "httpx"]
FORMATS = ["pyarrow", "h5py", "zarr", "numcodecs", "tifffile", "PIL", "jmespath", "jsonpatch"]
HEAVY = [*SCIENCE, *SERVER, *PEERS]


def loaded_after(code):
    script = f"{code}\nimport sys\nprint(*sorted(name for name in sys.modules if '.' not in name))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_the_package_loads_no_array_library_at_all():
    assert loaded_after("import flystore").isdisjoint([*HEAVY, "numpy", "pyarrow", "urllib3", "msgspec"])


def test_the_client_loads_only_what_a_plain_install_has():
    assert loaded_after("from flystore import from_uri, Key, FullText").isdisjoint(HEAVY)


@pytest.mark.parametrize("names", ["from_uri, Run, Stream", "RunWriter"])
def test_what_a_session_may_never_need_is_loaded_when_it_is_needed(names):
    found = loaded_after(f"from flystore import {names}")
    assert found.isdisjoint(["pyarrow", "asyncio", *HEAVY])


def test_a_service_loads_no_file_format_before_somebody_asks_for_one():
    found = loaded_after("import uvicorn, flystore.http, flystore.service, flystore.embedded")
    assert found.isdisjoint([*SCIENCE, *PEERS, *FORMATS, "urllib3"])
    assert {"sqlalchemy", "starlette"} <= found


@pytest.mark.parametrize(
    "use",
    [
        "from flystore.model.late import pa, pc; pc.add(pa.scalar(1), 1)",
        "from flystore.model.late import pq, arrow_csv; pq.ParquetWriter, arrow_csv.read_csv",
        "from flystore.readers._late import h5py, numcodecs; h5py.File, numcodecs.Shuffle",
        "from flystore.readers._late import numcodecs as n; n.fletcher32.Fletcher32, n.jenkins.jenkins_lookup3",
        "from flystore.readers._late import blosc, lz4, tifffile; blosc.compress, lz4.compress, tifffile.TiffFile",
        "from flystore.storage._arrays import _durable; _durable.create, _durable.opened",
    ],
)
def test_what_is_loaded_late_is_all_there_whichever_is_used_first(use):
    loaded_after(use)


def test_a_name_that_a_late_module_has_not_is_refused_as_by_the_module():
    pa = late("pyarrow")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pa.nonsense
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = late("no_such_module").anything


@pytest.mark.parametrize("name", [name for name in flystore.__all__ if name not in ("RunWriter", "open_store")])
def test_every_promised_name_is_there(name):
    assert getattr(flystore, name) is not None
    assert name in dir(flystore)


def test_other_names_are_refused_like_any_module_does():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = flystore.nonsense
