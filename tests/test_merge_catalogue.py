"""The page of merging methods, and the presets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from taskvec import registry
from taskvec.merge import catalogue

PRESETS = sorted((ROOT / "conf" / "merge").glob("*.yaml"))


def test_the_page_is_current():
    page = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")
    assert page == catalogue.page(), "python -m taskvec.merge.catalogue > docs/merging.md"


def test_the_page_names_every_method_and_option():
    page = catalogue.page()
    shipped = [entry for entry in registry.entries("merge") if entry.shipped]
    for entry in shipped:
        section = page.split(f"\n## {entry.name}\n")[1].split("\n## ")[0]
        for name in entry.schema.model_fields:
            assert name in catalogue.HIDDEN or f"`{name}`" in section
        assert all(convention.source in section for convention in entry.schema.conventions)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_conventions_that_the_page_names(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    preset = yaml.safe_load(text)
    kind = preset.pop("defaults")[0].removeprefix("/schema/merge/").removesuffix("@_here_")
    schema = registry.lookup("merge", kind).schema
    assert schema(**preset).identity() != schema().identity()
    known = [schema(**convention.options()).identity() for convention in schema.conventions]
    assert schema(**preset).identity() in known
