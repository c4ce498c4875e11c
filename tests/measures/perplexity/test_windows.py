"""Windows: every token predicted once, never longer than asked, and laid as the published schemes lay them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_tokenizer, tokenizer_of
from palimpsest.errors import BadInput
from palimpsest.measures.perplexity.windows import Reading, Window, harness_windows, stride_windows
from palimpsest.prompts import Renderer

COUNTS, SIZES = st.integers(0, 200), st.integers(8, 40)


@given(COUNTS, SIZES, st.integers(1, 40) | st.none(), st.sampled_from([0, 1]), st.booleans())
def test_each_token_is_predicted_once_with_all_the_context_that_fits(
    count: int, size: int, stride: int | None, bos: int, every: bool
) -> None:
    stride = None if stride is None else min(stride, size)
    found = stride_windows(count, size, stride, bos, every=every)
    predicted = [t for w in found for t in range(w.first, w.end)]
    assert predicted == list(range(0 if bos else 1, count))
    for number, w in enumerate(found):
        assert w.bos == bool(bos and (every or number == 0))
        assert w.start < w.first or w.bos, "something predicts the first token"
        length = w.end - w.start + w.bos
        assert length == size or (length < size and w.end == count)
        if number and stride is not None and w.end < count:
            assert w.end - w.first == min(stride, size - 1)  # one place is the BOS's, or that of the token before


@given(st.integers(2, 300), st.integers(8, 64), st.data())
def test_without_a_bos_it_is_the_loop_of_hugging_faces_documentation(count: int, size: int, data: Any) -> None:
    stride = data.draw(st.integers(1, size - 1))
    expected, before = [], 0
    for begin in range(0, count, stride):
        end = min(begin + size, count)
        expected.append(Window(begin, max(before, 1), end, bos=False))  # labels are shifted: nothing predicts token 0
        before = end
        if end == count:
            break
    assert stride_windows(count, size, stride, 0) == expected


def test_the_default_is_half_a_window_of_context() -> None:
    assert stride_windows(20, 8, None, 1) == [
        Window(0, 0, 7, bos=True),
        Window(3, 7, 10, bos=True),
        Window(6, 10, 13, bos=True),
        Window(9, 13, 16, bos=True),
        Window(12, 16, 19, bos=True),
        Window(15, 19, 20, bos=True),
    ]


def test_a_stride_of_the_window_is_disjoint() -> None:
    assert stride_windows(20, 8, 8, 1) == [
        Window(0, 0, 7, bos=True),
        Window(7, 7, 14, bos=True),
        Window(14, 14, 20, bos=True),
    ]
    without = stride_windows(20, 8, 8, 0)
    assert without == [Window(0, 1, 8, bos=False), Window(7, 8, 15, bos=False), Window(14, 15, 20, bos=False)]


@given(COUNTS, SIZES)
def test_the_harness_windows_are_those_of_lm_eval(count: int, length: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    tokens = list(range(count))
    theirs = utils.get_rolling_token_windows(tokens, prefix_token=-1, max_seq_len=length, context_len=1)
    expected = [tuple(map(list, utils.make_disjoint_window(pair))) for pair in theirs]
    ours = [([-1] * w.bos + tokens[w.start : w.first], tokens[w.first : w.end]) for w in harness_windows(count, length)]
    assert ours == expected


def test_what_stands_before_a_text() -> None:
    by_itself, bare = Renderer(make_tokenizer()), Renderer(tokenizer_of("wordpiece"))
    assert by_itself.tokenizer.bos_token_id == 1
    for bos, own, other in (("auto", [1], []), ("first", [1], []), ("never", [], [])):
        reading = Reading(bos=bos)  # type: ignore[arg-type]
        assert (reading.prefix(by_itself), reading.prefix(bare)) == (own, other)
    forced = [bare.tokenizer.bos_token_id]
    assert Reading(bos="always").prefix(bare) == Reading(scheme="harness", bos="first").prefix(bare) == forced
    assert not Reading(8, bos="first").windows(20, 1)[1].bos and Reading(8, bos="always").windows(20, 1)[1].bos


def test_a_tokenizer_without_bos_takes_its_eos_and_without_both_is_refused() -> None:
    class Bare:
        bos_token_id, eos_token_id = None, 7
        chat_template = None

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return type("Encoded", (), {"input_ids": [1] * len(text)})

    renderer = Renderer(Bare())
    assert Reading(bos="always").prefix(renderer) == [7]
    renderer.tokenizer.eos_token_id = None
    with pytest.raises(BadInput, match="neither a BOS nor an EOS"):
        Reading(bos="always").prefix(renderer)


@pytest.mark.parametrize(
    ("reading", "problem"),
    [(Reading(8, 9), "stride 9 is longer than the window of 8"), (Reading(8, bos="never", scheme="harness"), "BOS")],
)
def test_what_does_not_go_together_is_refused(reading: Reading, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        reading.check("perplexity")
