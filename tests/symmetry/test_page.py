"""The measured table of docs/protections/symmetries.md is that of the committed result."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_measured_table_of_the_page_is_that_of_the_result() -> None:
    file = ROOT / "benchmarks" / "symmetry" / "run.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_symmetries", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads(file.with_name("result.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "protections" / "symmetries.md").read_text(encoding="utf-8")
    assert module.table(result) in page
    large = result["large"]
    assert f"{large['parameters'] / 1e6:.0f} million" in page
    for name in ("imported_bytes", "written_bytes", "compared_bytes"):
        assert f"{large[name] / 1e9:.2f} GB" in page
    assert f"{large['agreement']['relative_error_float32']:.1e}" in page
