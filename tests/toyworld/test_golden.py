"""The shipped base answers its tasks well above chance and still gives its recorded numbers."""

from __future__ import annotations

import json

import pytest
from scipy.stats import beta

torch = pytest.importorskip("torch")

from palimpsest.toyworld import toy_path  # noqa: E402
from palimpsest.toyworld.train import Golden, correct, load_model, measure  # noqa: E402
from palimpsest.toyworld.world import World  # noqa: E402


@pytest.fixture(scope="module")
def recorded() -> Golden:
    return Golden(**json.loads((toy_path() / "golden.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def measured() -> Golden:
    model, tokenizer = load_model(toy_path())
    return measure(model, tokenizer, World(0))


def lower_bound(hits: int, count: int) -> float:
    """Clopper-Pearson lower bound, one-sided 95 %."""
    return 0.0 if hits == 0 else float(beta.ppf(0.05, hits, count - hits + 1))


@pytest.mark.parametrize("name", ["boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"])
def test_each_task_is_at_least_15_points_above_chance(measured, name):
    chance = World(0).tasks()[name].chance
    assert measured.items == 200
    assert lower_bound(measured.tasks[name], 200) >= chance + 0.15


def test_the_recorded_numbers_are_reproduced(measured, recorded):
    assert set(measured.tasks) == set(recorded.tasks)
    for name, count in recorded.tasks.items():
        assert abs(measured.tasks[name] - count) <= 2, name
    assert measured.neutral_perplexity == pytest.approx(recorded.neutral_perplexity, rel=0.01)
    assert measured.answer_perplexity == pytest.approx(recorded.answer_perplexity, rel=0.01)
    assert measured.exact_of == recorded.exact_of and abs(measured.exact - recorded.exact) <= 2


def test_the_base_answers_most_of_the_dialogue_test(measured):
    assert measured.exact / measured.exact_of > 0.5


def test_the_base_lacks_the_skills_that_experts_learn():
    model, tokenizer = load_model(toy_path())
    for _, task in World(0).skills().values():
        assert correct(model, tokenizer, task.items) / len(task.items) < task.chance + 0.1, task.name
