"""The samples of docs/testing.md, as a separate project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.samples import ROOT, blocks


def test_every_sample_of_the_page_runs(tmp_path: Path) -> None:
    for sample in blocks("docs/testing.md"):
        if sample.title is not None:
            file = tmp_path / sample.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(sample.text)
            continue
        if sample.language != "python":
            continue
        name = re.match(r"# (\w+\.py)\n", sample.text)
        assert name is not None, f"{sample} does not say which file it is"
        (tmp_path / name[1]).write_text(sample.text)
    plugin = ("-p", "asgi_datasource.testing.plugin", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "9 passed" in done.stdout, done.stdout + done.stderr
