"""What stands in the folder of a merge beside its weights: configuration, tokenizer, lineage; and what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import palimpsest as pal
from factory import copy_of, make_model
from merging.folders import config_of, make_folder
from palimpsest.checkpoint import lineage, resolve
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.request import MergeRequest, Part
from palimpsest.method import Context

RUN = pal.Run(device="cpu", threads=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folder")
    return make_model(root / "a", layers=1, seed=1), make_model(root / "b", layers=1, seed=2, template="{{ b }}")


def test_tokenizer_and_configuration_are_the_bases_else_the_firsts(models: tuple[Path, Path], tmp_path: Path) -> None:
    cases: list[tuple[Any, Path]] = [(("linear", models), models[0]), (("linear", models[::-1]), models[1])]
    cases.append((("task-arithmetic", models[:1], models[1]), models[1]))
    for number, ((method, parts, *base), source) in enumerate(cases):
        out = tmp_path / str(number)
        pal.merge(method, parts, out, base=base[0] if base else None, digests=False, run=RUN)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            assert (out / name).read_bytes() == (source / name).read_bytes()
        merged, theirs = config_of(out), config_of(source)
        assert {k: merged[k] for k in theirs} == theirs


def test_the_lineage_goes_on_from_the_base_and_names_all_parents(models: tuple[Path, Path], tmp_path: Path) -> None:
    base = copy_of(models[0], tmp_path / "base")
    lineage.write(base, [], "embed if-sft", {}, commitment="c0ffee")
    pal.merge("task_arithmetic", [models[0], models[1]], tmp_path / "m", base=base, run=RUN)
    first, second = resolve(tmp_path / "m").chain()
    assert first["commitment"] == "c0ffee" and second["method"] == "merge task-arithmetic"
    named = {"model-1": models[0], "model-2": models[1], "base": base}
    assert second["parents"] == {role: resolve(path).digest() for role, path in named.items()}


def test_no_probe_of_a_parent_and_no_other_file_comes_along(models: tuple[Path, Path], tmp_path: Path) -> None:
    source = copy_of(models[0], tmp_path / "source")
    (source / "palimpsest-probe.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    pal.merge("linear", [source], tmp_path / "m", digests=False, run=RUN)
    allowed = {"config.json", "generation_config.json", "model.safetensors", "palimpsest.json", "tokenizer.json"}
    assert {p.name for p in (tmp_path / "m").iterdir()} <= allowed | {"tokenizer_config.json", "chat_template.jinja"}


def test_what_it_took_is_counted(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / str(i), seed=i) for i in range(3)]
    request = MergeRequest("linear", tuple(Part(resolve(f)) for f in folders))
    merged = merge_to_folder(request, tmp_path / "m", Context(threads=1), digests=False)
    size = sum(t.end - t.start for t in resolve(tmp_path / "m").tensors())
    assert (merged.tensors, merged.bytes_out, merged.bytes_in) == (7, size, 3 * size) and merged.seconds > 0
    assert merged.figures["bytes_read"] == 3 * size


def test_other_names_of_the_same_dtype_are_kept_in_step(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", config={"torch_dtype": "bfloat16", "dtype": "bfloat16"})
    pal.merge("linear", [folder], tmp_path / "m", dtype="float16", digests=False, run=RUN)
    said = json.loads((tmp_path / "m" / "config.json").read_text())
    assert said["torch_dtype"] == said["dtype"] == "float16"
