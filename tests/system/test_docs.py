"""Every Python block of the documentation runs, against a real service.

If these fail, the first thing a newcomer copies does not work.
"""

import re
from pathlib import Path

import pytest

from flystore import RunWriter
from flystore.testing.beamline import Camera, Panda, flyscan, run_engine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_one_after_the_other(page, server, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with run_engine() as engine, RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        engine.subscribe(writer)
        engine(flyscan(Panda(data), [Camera(data)], 4, burst=1))
        writer.flush(timeout=100)
    names = {}
    for block in BLOCK.findall(page.read_text()):
        code = block.replace("http://localhost:8000", server.url)
        exec(compile(code, str(page), "exec"), names)
    _end(names)
    capsys.readouterr()


def _end(names):
    """Close what the page left open, as the end of a session would."""
    engine = names.get("RE")
    if engine is not None:
        engine.loop.call_soon_threadsafe(engine.loop.stop)
        engine._th.join()
        engine.loop.close()
    for value in list(names.values()):
        if type(value).__module__.startswith("flystore.client") and hasattr(value, "close"):
            value.close()


def test_every_link_between_pages_leads_somewhere():
    broken = []
    for page in [*PAGES, ROOT / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_file_that_the_map_names_is_there():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`(src/[\w/.]+)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
