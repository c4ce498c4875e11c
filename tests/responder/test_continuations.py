"""Scores with shared beginnings are those of each request read by itself, in whatever way a model allows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from factory import FAMILIES, drawn, make_config
from palimpsest.responder.continuations import ContinuationScorer
from palimpsest.responder.sharing import LEAST_ROOT, ROW_BEHIND_ROOT

Pair = tuple[list[int], list[int]]


def model_of(family: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return drawn(AutoModelForCausalLM, make_config(family, 2, 64, 400, None, 256, **changes), 0).eval()


def some_requests(seed: int = 0) -> list[Pair]:
    """Contexts that begin alike in several depths; choices of one and more tokens; repeats; a beginning alone."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 400) for _ in range(rng.randint(low, high))]

    start, found = words(LEAST_ROOT + 8, LEAST_ROOT + 8), []
    for kept in (0, 3, 40, len(start), len(start), len(start), len(start)):
        context = start[:kept] + words(1, 25)
        found += [(context, words(1, 5)) for _ in range(3)]
        found += [(context, [8]), (context, [9]), (context, [8, 9]), (context, [8, 9])]
        found.append((context[:-1] or context, [7]))
    return found


def read_alone(model: Any, requests: list[Pair], positions: int = 256) -> list[tuple[float, bool]]:
    """What the definition says, a request at a time, without anything of ours."""
    found = []
    for context, continuation in requests:
        ids = [*context, *continuation][-positions - 1 :]
        with torch.no_grad():
            logs = model(torch.tensor([ids[:-1]])).logits[0, -len(continuation) :].log_softmax(-1)
        chosen = logs[torch.arange(len(continuation)), torch.tensor(continuation)]
        found.append((float(chosen.sum()), logs.argmax(-1).tolist() == continuation))
    return found


def assert_same(scorer: ContinuationScorer, requests: list[Pair], positions: int = 256) -> None:
    expected = read_alone(scorer.forward.model, requests, positions)
    found = scorer.score(requests, positions)
    assert [f.log_prob for f in found] == pytest.approx([e[0] for e in expected], abs=1e-4, rel=0)
    assert [f.greedy for f in found] == [e[1] for e in expected]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [2048, 96])
def test_scores_are_those_of_each_request_alone(family: str, tokens: int) -> None:
    assert_same(ContinuationScorer(model_of(family), tokens), some_requests())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_eager_attention_gives_the_same(family: str) -> None:
    scorer = ContinuationScorer(model_of(family, attn_implementation="eager"))
    assert scorer.sharing.columns
    assert_same(scorer, some_requests())


def test_what_is_shared_is_read_once_and_a_long_beginning_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, bool]] = []
    for tokens, cached in ((2048, False), (64, True)):
        scorer = ContinuationScorer(model_of("llama"), tokens)
        assert scorer.sharing.columns == tokens and scorer.sharing.cache
        plain = scorer.forward.read

        def counted(ids: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
            read.append((ids.numel(), bool(options.get("cache"))))
            return plain(ids, *args, **options)

        monkeypatch.setattr(scorer.forward, "read", counted)
        rng = random.Random(1)
        start = [rng.randrange(3, 400) for _ in range(100)]
        contexts = [[*start, i, i + 1] for i in range(3, 13)]
        read.clear()
        requests = [(c, [k]) for c in contexts for k in range(20, 30)]
        assert_same(scorer, requests)
        assert sum(n for n, _ in read) == 100 + 20 and any(c for _, c in read) == cached


def test_the_first_choice_is_greedy() -> None:
    scorer = ContinuationScorer(model_of("llama"))
    context = [5, 6, 7, 8]
    with torch.no_grad():
        best = int(scorer.forward.model(torch.tensor([context])).logits[0, -1].argmax())
    first, second = scorer.score([(context, [best]), (context, [best + 1])])
    assert first.greedy and not second.greedy and first.log_prob > second.log_prob


def test_models_that_take_no_mask_of_branches_are_read_plainly() -> None:
    assert ContinuationScorer(model_of("gpt_neo")).sharing.columns == 0  # its window is shorter than the probe
    assert ContinuationScorer(model_of("gemma2")).sharing.columns == 64  # its window
    longer = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    assert ContinuationScorer(model_of("llama", **longer)).sharing.columns == 0
    from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig

    for config in (
        MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4),
        BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2),
    ):
        scorer = ContinuationScorer(drawn(AutoModelForCausalLM, config, 0).eval())
        assert scorer.sharing.columns == 0
        assert_same(scorer, some_requests()[:24])


def test_the_probe_tells_a_model_that_ignores_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    forward = type(model.model).forward

    def blind(self: Any, *args: Any, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", blind)
    scorer = ContinuationScorer(model)
    assert scorer.sharing.columns == 0
    assert_same(scorer, some_requests())


def test_a_small_vocabulary_s_probe_and_one_request_are_enough() -> None:
    assert_same(ContinuationScorer(model_of("llama")), [([3], [4])])
    assert ContinuationScorer(model_of("llama")).score([]) == []


def test_the_progress_counts_every_request() -> None:
    counted: list[int] = []
    requests = some_requests()
    ContinuationScorer(model_of("llama"), 96).score(requests, 256, counted.append)
    assert sum(counted) == len(requests)


@pytest.mark.parametrize(
    ("request_", "message"), [(([], [3]), "no context"), (([3], []), "no continuation"), (([3], [4] * 9), "positions")]
)
def test_what_cannot_be_scored_is_refused(request_: Pair, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContinuationScorer(model_of("llama")).score([request_], positions=8)


def test_no_pass_holds_more_than_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ContinuationScorer(model_of("llama"), 200)
    sizes: list[tuple[int, int]] = []
    plain = scorer.forward.read

    def counted(ids: Any, *args: Any, **options: Any) -> Any:
        sizes.append(tuple(ids.shape))
        return plain(ids, *args, **options)

    scorer.sharing  # noqa: B018 (asks for the probe's own passes first)
    monkeypatch.setattr(scorer.forward, "read", counted)
    scorer.score(some_requests(), 256)
    assert all(rows == 1 or rows * width <= 200 for rows, width in sizes)
    assert max(width for _, width in sizes) <= max(200, ROW_BEHIND_ROOT)
