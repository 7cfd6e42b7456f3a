"""The wheel and the source distribution: their contents, their metadata, and an installation of the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any, Final

import pytest

from tests.packaging.import_surface import DATA

ROOT: Final = Path(__file__).parents[2]
SURFACE: Final = Path(__file__).with_name("import_surface.py")
RUNNING: Final = "{}.{}".format(*sys.version_info[:2])


def run(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """The output of a command; its failure shows both of its streams."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(arguments, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both distributions; the wheel is made from the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def sources() -> set[str]:
    """The files of the repository: tracked ones, and new ones that git does not ignore."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    package = {name for name in sources() if name.startswith("asgi_datasource/")}
    assert {f"asgi_datasource/{name}" for name in DATA} <= package
    assert {name for name in held if ".dist-info/" not in name} == package
    assert {name.partition(".dist-info/")[2] for name in held - package} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_source_distribution_holds_the_repository(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held - {"PKG-INFO"} == sources()


def test_the_metadata_is_valid_and_names_the_tested_versions(built: Path, wheel: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    known = metadata.get_all("Classifier", [])
    versions = [name.rpartition(" ")[2] for name in known if name.startswith("Programming Language :: Python :: 3.")]
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert metadata["Requires-Python"] == f">={versions[0]}"
    assert RUNNING in versions
    assert f"Python {versions[0]} to {versions[-1]}, PostgreSQL" in (ROOT / "README.md").read_text()
    page = (ROOT / "docs/installation.md").read_text()
    assert f"Python {versions[0]} to {versions[-1]} on Linux" in page
    table = page.partition("| extra | brings")[2].partition("\n\n")[0]
    extras = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:])))
    assert extras == set(project["project"]["optional-dependencies"]) == set(metadata.get_all("Provides-Extra", []))


@pytest.mark.timeout(1200)  # with --whole, three installations
def test_the_wheel_works_in_a_clean_environment(wheel: Path, whole: bool, tmp_path: Path) -> None:
    """With `--whole` in each tested version that this machine has an interpreter of, with its dependencies installed.

    Otherwise in the running one, which lends its dependencies.
    """
    if not whole:
        python = environment(Path(sys.executable), tmp_path / RUNNING)
        offline = ("--quiet", "--no-deps", "--no-index", "--no-compile")
        lend = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (lend / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel)
        assert_works(python, tmp_path, "--public")
        return
    for version in ("3.11", "3.12", "3.13"):
        base = run("bash", "-c", f". scripts/setup.sh; find_python {version}").strip()
        python = environment(Path(base), tmp_path / version)
        constraints = ROOT / "scripts/constraints.txt"
        wanted = f"{wheel}[binary]"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "-c", constraints, wanted)
        assert_works(python, tmp_path)


def environment(base: Path, folder: Path) -> Path:
    """The interpreter of a new, empty virtual environment."""
    run(base, "-m", "venv", "--without-pip", folder)
    return folder / "bin/python"


def assert_works(python: Path, cwd: Path, *options: str) -> None:
    """Its names can be imported, and the command runs."""
    assert "modules imported" in run(python, SURFACE, *options, cwd=cwd)
    schema = json.loads(run(python.with_name("asgi-datasource"), "schema", cwd=cwd))
    assert "datasources" in schema["properties"]
