"""The commands work in a base install, and their help is quick.

If these fail, ``pip install flystore`` gives a command that ends in a traceback, or one that makes people wait.
"""

import subprocess
import sys

import pytest

SERVER_PARTS = ["starlette", "uvicorn", "sqlalchemy", "h5py", "zarr", "numcodecs", "tifffile"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)


def command(*arguments, without=()):
    hidden = "".join(f"sys.modules[{name!r}] = None;" for name in without)
    return run(f"import sys; {hidden} sys.argv = ['flystore', *{arguments!r}]; from flystore.cli import main; main()")


def test_the_help_page_names_every_command():
    done = command("--help")
    assert done.returncode == 0
    assert "serve" in done.stdout
    assert "version" in done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("version",)])
def test_help_and_version_need_no_server_parts(arguments):
    done = command(*arguments, without=SERVER_PARTS)
    assert done.returncode == 0
    assert done.stderr == ""


def test_help_imports_nothing_heavy():
    done = run(
        "import sys; from flystore.cli import main; sys.argv = ['flystore', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"heavy = {[*SERVER_PARTS, 'numpy', 'pyarrow', 'pandas', 'xarray']!r}\n"
        "print('loaded:', [name for name in heavy if name in sys.modules])"
    )
    assert done.stdout.endswith("loaded: []\n")


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "sqlalchemy"])
def test_without_the_server_parts_serve_says_what_to_install(missing):
    done = command("serve", "--temp", "--port", "0", without=[missing])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "flystore: the service needs parts that a plain install leaves out; get them with: "
        "pip install 'flystore[server]'\n"
    )


def test_a_command_that_does_not_exist_is_explained():
    done = command("sevre")
    assert done.returncode == 2
    assert "sevre" in done.stderr
