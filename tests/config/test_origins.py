"""The files of a document are recorded, and changes of them are detected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asgi_datasource.config import ConfigFile, InvalidConfig, Origins, load

MAIN = """\
version: 1
include: [tenants/*.yaml]
datasources: {orders: {primary: {url: {file: secrets/primary}}}}
tenancy: {resolve: [{header: X-Tenant}]}
"""
TENANT = "tenants: {%s: {datasource: orders, schema: %s}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tenants", "secrets"):
        (tmp_path / name).mkdir()
    (tmp_path / "datasource.yaml").write_text(MAIN)
    (tmp_path / "prod.yaml").write_text("transactions: {deadline: 10s}\n")
    (tmp_path / "secrets/primary").write_text("postgresql://app@db/orders\n")
    (tmp_path / "tenants/acme.yaml").write_text(TENANT % ("acme", "acme"))
    return tmp_path


def read(folder: Path) -> Origins:
    origins = Origins()
    load(ConfigFile(folder / "datasource.yaml", overlays=(folder / "prod.yaml",)), environ={}, origins=origins)
    return origins


def test_all_files_are_recorded(folder: Path) -> None:
    origins = read(folder)
    names = {"datasource.yaml", "prod.yaml", "secrets/primary", "tenants/acme.yaml"}
    assert {str(path.relative_to(folder)) for path in origins.files} == names
    assert origins.patterns == {(folder, "tenants/*.yaml"): ("tenants/acme.yaml",)}
    assert origins.look() == origins
    assert (bool(origins), bool(Origins())) == (True, False)


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "datasource.yaml").write_text(MAIN + "errors: {debug: true}\n"),
    lambda folder: (folder / "prod.yaml").unlink(),
    lambda folder: (folder / "secrets/primary").write_text("postgresql://app@other/orders\n"),
    lambda folder: (folder / "tenants/acme.yaml").write_text(TENANT % ("acme", "other")),
    lambda folder: (folder / "tenants/globex.yaml").write_text(TENANT % ("globex", "globex")),
    lambda folder: (folder / "tenants/acme.yaml").rename(folder / "tenants/acme.txt"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_detected(folder: Path, change: Callable[[Path], object]) -> None:
    origins = read(folder)
    digest = origins.digest()
    change(folder)
    assert origins.look() != origins
    assert origins.look().digest() != digest


def test_a_replaced_file_is_detected_and_equal_content_is_recognized(folder: Path) -> None:
    origins = read(folder)
    digest = origins.digest()
    (folder / "new").write_text(MAIN)
    os.utime(folder / "new", ns=(0, (folder / "datasource.yaml").stat().st_mtime_ns))
    (folder / "new").replace(folder / "datasource.yaml")
    assert origins.look() != origins
    assert origins.look().digest() == digest


def test_a_swapped_link_of_a_kubernetes_mount_is_detected(tmp_path: Path) -> None:
    """The files of a ConfigMap are links into `..data`, a link to a directory that Kubernetes replaces."""
    for version, schema in (("..1", "acme"), ("..2", "other")):
        (tmp_path / version).mkdir()
        text = MAIN.replace("include", "# include") + TENANT % ("acme", schema)
        (tmp_path / version / "datasource.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "datasource.yaml").symlink_to("..data/datasource.yaml")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/primary").write_text("postgresql://app@db/orders\n")
    origins = Origins()
    assert load(tmp_path / "datasource.yaml", origins=origins).tenants["acme"].schema_name == "acme"
    assert origins.look() == origins
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert origins.look() != origins
    assert load(tmp_path / "datasource.yaml").tenants["acme"].schema_name == "other"


def test_the_files_of_a_refused_document_are_recorded_too(folder: Path) -> None:
    (folder / "tenants/wrong.yaml").write_text("tenants: {globex: {datasource: order}}\n")
    (folder / "secrets/primary").unlink()
    origins = Origins()
    with pytest.raises(InvalidConfig):
        load(folder / "datasource.yaml", environ={}, origins=origins)
    names = {"datasource.yaml", "secrets/primary", "tenants/acme.yaml", "tenants/wrong.yaml"}
    assert {str(path.relative_to(folder)) for path in origins.files} == names
    assert origins.files[folder / "secrets/primary"] is None
    (folder / "secrets/primary").write_text("postgresql://app@db/orders\n")
    assert origins.look() != origins
