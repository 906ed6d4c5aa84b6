"""Importing flystore stays light, and every name it promises is there.

If these fail, a session at a beamline waits for libraries it does not use, or a plain install, without
the server's and the scientists' libraries, cannot even be imported.
"""

import subprocess
import sys

import pytest

import flystore

SCIENCE = ["xarray", "pandas", "dask"]
SERVER = ["sqlalchemy", "starlette", "uvicorn", "h5py", "zarr", "numcodecs"]
PEERS = ["tiled", "bluesky", "httpx"]
HEAVY = [*SCIENCE, *SERVER, *PEERS]


def loaded_after(code):
    script = f"{code}\nimport sys\nprint(*sorted(name for name in sys.modules if '.' not in name))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_importing_the_package_loads_no_array_library_at_all():
    assert loaded_after("import flystore").isdisjoint([*HEAVY, "numpy", "pyarrow", "urllib3", "msgspec"])


def test_the_client_loads_only_what_a_plain_install_has():
    assert loaded_after("from flystore import from_uri, Key, FullText").isdisjoint(HEAVY)


@pytest.mark.parametrize("name", [name for name in flystore.__all__ if name not in ("RunWriter", "open_store")])
def test_every_promised_name_is_there(name):
    assert getattr(flystore, name) is not None
    assert name in dir(flystore)


def test_other_names_are_refused_like_any_module_does():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = flystore.nonsense
