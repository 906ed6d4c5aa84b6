import runpy, sys
def test_smoke(catalog_url, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", catalog_url])
    runpy.run_path("/tmp/cat/smoke.py")
