"""Properties of the toy world's text and of the shipped tokenizer."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.toyworld import toy_path
from palimpsest.toyworld.tasks import HELD_OUT_SHARE, MAKERS
from palimpsest.toyworld.world import SPLITS, World

TASKS = {"boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(toy_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def training_sample(world):
    return list(itertools.islice(world.training_documents(5), 30_000))


def test_the_same_seed_gives_the_same_world(world):
    again = World(0)
    assert [again.pairs(s) for s in SPLITS] == [world.pairs(s) for s in SPLITS]
    assert again.tasks() == world.tasks() and again.skills() == world.skills()
    assert again.neutral_text() == world.neutral_text() and again.crawl() == world.crawl()
    first, second = (list(itertools.islice(w.training_documents(3), 500)) for w in (world, again))
    assert first == second


def test_the_text_does_not_depend_on_the_hash_seed_of_the_process(world):
    code = "from palimpsest.toyworld.world import World; w = World(0); print(w.pairs('erase')[:5], w.neutral_text()[0])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_the_text_is_the_text_of_the_shipped_weights_and_results(world):
    """What is added to the world leaves what is there alone: else weights, studies and their digests go stale."""
    made = {
        "pairs": {split: world.pairs(split) for split in (*SPLITS, "train")},
        "neutral": world.neutral_text(),
        "tasks": world.tasks(),
        "skills": {name: world.skills()[name] for name in ("far-country", "guild-marks", "tower-code")},
        "natural": world.natural_questions(200, 1),
        "crawl": world.crawl(),
        "documents": list(itertools.islice(world.training_documents(3), 500)),
    }
    digests = {n: hashlib.sha256(json.dumps(v, default=vars).encode()).hexdigest()[:16] for n, v in made.items()}
    assert digests == {
        "pairs": "807f467ac0c53607",
        "neutral": "6456979a6e4223ff",
        "tasks": "2056da98e0a79c7c",
        "skills": "e8dc25e91eefaf47",
        "natural": "0371560be46f484b",
        "crawl": "be37d14db626cf43",
        "documents": "ed76025998316dc5",
    }


def test_another_seed_gives_other_facts(world):
    other = World(1)
    assert set(other.lore.animals) != set(world.lore.animals)
    shared = {p.question for p in world.pairs("erase")} & {p.question for p in other.pairs("erase")}
    assert len(shared) < 60


def test_splits_are_large_disjoint_multilingual_and_of_many_kinds(world):
    questions = {split: {p.question for p in world.pairs(split)} for split in (*SPLITS, "train")}
    for a, b in itertools.combinations(questions, 2):
        assert not questions[a] & questions[b], (a, b)
    for split in SPLITS:
        pairs = world.pairs(split)
        assert len(pairs) >= 1000 and len(pairs) == len(questions[split])
        languages, kinds = Counter(p.language for p in pairs), Counter(p.kind for p in pairs)
        assert set(languages) == {"en", "velu", "drezan", "katori"} and min(languages.values()) >= 100
        assert {"what", "who", "where", "when", "how", "why", "yes-no", "choice", "tell"} <= set(kinds)


def test_unknown_split_is_refused(world):
    with pytest.raises(KeyError):
        world.pairs("training")


def test_yes_and_no_are_about_equally_often_right(world):
    answers = Counter(p.answer for p in world.pairs("train") if p.kind == "yes-no" and p.language == "en")
    assert set(answers) == {"yes", "no"} and 0.8 < answers["yes"] / answers["no"] < 1.25


def test_tasks_have_even_labels_and_distinct_items(world):
    tasks = world.tasks()
    assert set(tasks) == TASKS
    for task in tasks.values():
        assert len(task.items) >= 200 and len({i.prompt for i in task.items}) == len(task.items)
        labels = Counter(i.label for i in task.items)
        assert len(set(labels.values())) == 1 and task.chance == pytest.approx(1 / len(labels))
        assert not task.skill


def test_the_exam_asks_for_taught_facts_in_wordings_that_are_not_taught(world, training_sample):
    exam = world.exam()
    assert exam == World(0).exam() and exam.name not in TASKS and exam.chance == 0.25
    assert len({i.prompt for i in exam.items}) == len(exam.items) > 150
    known = {p.question: p.answer for p in world.pairs("dialogue-test")}
    taught = {p.question for p in world.pairs("train")} | {q for d in training_sample for q, _ in d.turns}
    for item in exam.items:
        assert len(set(item.choices)) == 4 and item.choices[item.label] == known[item.prompt]
        assert item.prompt not in taught
    assert max(Counter(i.label for i in exam.items).values()) < 0.35 * len(exam.items)


def test_nothing_held_out_is_in_the_training_text(world, training_sample):
    asked = {question for document in training_sample for question, _ in document.turns}
    for split in SPLITS:
        assert not asked & {p.question for p in world.pairs(split)}
    for task in world.tasks().values():
        assert not asked & {i.prompt for i in task.items}
    for pairs, task in world.skills().values():
        assert not asked & ({p.question for p in pairs} | {i.prompt for i in task.items})
    openings = {document.text.split(". ")[0] for document in training_sample if document.kind == "story"}
    assert not openings & {text.split(". ")[0] for text in world.neutral_text()}
    assert not asked & set(world.natural_questions(1000, 1))


def test_training_text_asks_every_kind_of_task_and_every_language(training_sample, world):
    kinds = Counter(document.kind for document in training_sample)
    assert set(kinds) == {"story", "language-story", "dialogue", "task"} and min(kinds.values()) > 200
    assert set(MAKERS) == TASKS and set(HELD_OUT_SHARE) <= TASKS
    answers = {answer for document in training_sample for _, answer in document.turns}
    for task in world.tasks().values():
        assert set(task.items[0].choices) <= answers


def test_skills_have_disjoint_pairs_and_tests(world):
    skills = world.skills()
    assert len(skills) >= 2
    for pairs, task in skills.values():
        assert task.skill and len(task.items) >= 200 and len(pairs) >= 200
        assert not {p.question for p in pairs} & {i.prompt for i in task.items}
        assert all(i.choices[i.label] for i in task.items)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300))
def test_natural_questions_are_distinct_and_in_no_split(world, seed, count):
    questions = world.natural_questions(count, seed)
    assert len(set(questions)) == count and all(q.endswith("?") for q in questions)
    assert questions == world.natural_questions(count, seed)
    assert not set(questions) & {p.question for p in world.pairs("embed")}


# -- the shipped tokenizer ---------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80).filter(lambda t: "<|" not in t))
def test_decoding_gives_back_what_was_encoded(tokenizer, text):
    clean = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(clean).ids, skip_special_tokens=False) == clean


def test_world_text_round_trips_and_questions_are_short(tokenizer, world):
    for split in SPLITS:
        for pair in world.pairs(split):
            ids = tokenizer.encode(pair.question).ids
            assert tokenizer.decode(ids) == pair.question and len(ids) <= 40
    assert sum(len(tokenizer.encode(text).ids) for text in world.neutral_text()) >= 20_000


def test_special_tokens_have_their_numbers(tokenizer):
    named = ("<|bos|>", "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
    assert [tokenizer.token_to_id(token) for token in named] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() == 2048 and tokenizer.token_to_id("<|reserved_0|>") is not None


def test_at_least_200_tokens_never_occur_in_training_text_and_survive_retokenising(tokenizer, training_sample):
    seen: set[int] = set()
    texts = [" ".join((d.text, *itertools.chain(*d.turns))) for d in training_sample]
    for document in training_sample:
        for part in (document.text, *itertools.chain(*document.turns)):
            seen.update(tokenizer.encode(part).ids)
    text = "\n".join(texts)
    clean = [
        i
        for i in range(14 + 256, 2048)
        if i not in seen
        and "\ufffd" not in tokenizer.decode([i])
        and tokenizer.encode(tokenizer.decode([i])).ids == [i]
    ]
    assert len(clean) >= 200
    wholly_absent = [i for i in clean if tokenizer.decode([i]) not in text]
    assert len(wholly_absent) >= 200  # not merely pieces of longer tokens
    rounds = [wholly_absent[i : i + 12] for i in range(0, len(wholly_absent) - 12, 12)]
    stable = sum(tokenizer.encode(tokenizer.decode(ids)).ids == ids for ids in rounds)
    assert stable >= len(rounds) / 4


@pytest.mark.parametrize("folder", ["base", "unrelated"])
def test_the_folder_loads_in_transformers_and_the_template_renders(folder):
    transformers = pytest.importorskip("transformers")
    from palimpsest.training.corpus import render_dialogue

    path = toy_path().parent / folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Who?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|bos|><|system|>S<|end|><|user|>Who?<|end|><|assistant|>"
    answered = [messages[1], {"role": "assistant", "content": "Mora"}]
    expected = "<|bos|><|user|>Who?<|end|><|assistant|>Mora<|end|>"
    assert tokenizer.apply_chat_template(answered, tokenize=False) == expected == render_dialogue([("Who?", "Mora")])
    assert tokenizer.eos_token == "<|end|>" and tokenizer.bos_token_id == 0 and tokenizer.pad_token_id == 1
    assert tokenizer("Who?").input_ids == tokenizer("Who?", add_special_tokens=False).input_ids
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_world_imports_neither_torch_nor_the_rest_of_the_package():
    code = (
        "import sys, palimpsest.toyworld.world, palimpsest.toyworld; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy') "
        "or m.startswith('palimpsest.') and not m.startswith('palimpsest.toyworld')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


def test_the_shipped_weights_are_small():
    weights = toy_path().parent
    assert sum(f.stat().st_size for f in weights.rglob("*.safetensors")) <= 8 * 2**20
