"""Fixtures of the tests of keys and manifests."""

import shutil
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src/streamgauge"


@pytest.fixture
def library(tmp_path):
    """Writes modules of a small library, ``package__module=text``; returns its folder."""
    source = tmp_path / "streamgauge"
    for name in ("errors", "progress"):
        (source / "base").mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / f"base/{name}.py", source / "base")
    (source / "base/__init__.py").write_text("FORMAT = 7\n")

    def write(**files):
        for name, text in files.items():
            path = source / f"{name.replace('__', '/') if '__' in name else f'{name}/__init__'}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return source

    return write
