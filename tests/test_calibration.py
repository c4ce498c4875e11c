"""The calibration of every claim rule, with few trials: the large run is docs/results/calibration."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "results" / "calibration" / "calibrate.py"


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    spec = importlib.util.spec_from_file_location("calibrate", SCRIPT)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["calibrate"] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made.all_rows(400, 1)


SLACK = {"removed (backdoor): excess ASR": 0.0015, "removed (backdoor): accuracy": 0.0015}  # a score interval: near 5 %


def test_no_rule_claims_more_often_than_its_level(rows: list[Any]) -> None:
    wrong = [r for r in rows if r.errs() and not (r.what == "false" and r.rate <= r.nominal + SLACK.get(r.rule, 0.0))]
    assert not wrong, wrong
    assert len({r.rule for r in rows if r.what == "false"}) >= 18


def test_the_stopping_boundary_at_one_in_a_million_is_summed_exactly(rows: list[Any]) -> None:
    exact = {r.setting: r.rate for r in rows if "1e-6" in r.setting and r.what == "false"}
    assert len(exact) == 6 and all(0 < rate <= 1e-6 for rate in exact.values())
    for setting, rate in exact.items():
        if "Wald" in setting:  # the exact boundary spends more of what is allowed
            assert exact[setting.replace("Wald", "exact boundary")] >= rate


def test_score_intervals_are_near_their_level(rows: list[Any]) -> None:
    near = {r.setting: r.rate for r in rows if r.rule == "Tango, two-sided"}
    assert all(rate >= (0.945 if "mean" in setting else 0.925) for setting, rate in near.items())


def test_draws_and_common_decoys_that_are_not_counted_break_the_level(rows: list[Any]) -> None:
    shown = {r.setting: (r.rate, r.nominal) for r in rows if "draws not counted" in r.rule}
    assert all(rate > 10 * nominal for rate, nominal in shown.values())


def test_common_decoys_widen_what_fisher_takes_for_independent() -> None:
    from palimpsest.statistics import fisher_combination

    draw, keys, decoys = np.random.default_rng(0), 64, 64
    plain = wider = 0
    for _ in range(4000):
        field = np.sort(draw.random(decoys))
        p = (1 + decoys - np.searchsorted(field, draw.random(keys))) / (decoys + 1)
        plain += fisher_combination(p.tolist()) <= 1e-3
        wider += fisher_combination(p.tolist(), decoys) <= 1e-3
    assert plain > 2 * 4 and wider <= 4 + 8
