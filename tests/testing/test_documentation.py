"""The samples of docs/testing.md, as a separate project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.samples import ROOT, samples


def test_every_sample_of_the_page_runs(tmp_path: Path) -> None:
    for sample in samples("python", "docs/testing.md"):
        name = re.match(r"# (\w+\.py)\n", sample.text)
        assert name is not None, f"{sample} does not say which file it is"
        (tmp_path / name[1]).write_text(sample.text)
    plugin = ("-p", "asgi_datasource.testing.plugin", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "5 passed" in done.stdout, done.stdout + done.stderr
