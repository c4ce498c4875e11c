"""Tasks of lm-evaluation-harness, loaded with its own prompt forms and run by its own evaluator.

`prepared` loads tasks, on the Hub's data sets or on local files; `evaluated` runs one through the harness's `evaluate`
with a scorer of `scorer_for`. With local files the harness's task is taken as it is installed (its YAML is included,
nothing of it is copied) and only the place that rows come from is exchanged.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import BadInput
from palimpsest.measures.tasks import files
from palimpsest.measures.tasks.groups import GROUPS, expand
from palimpsest.progress import Task as Progress

if TYPE_CHECKING:
    from palimpsest.measures.subject import Subject

SCORER = "palimpsest.measures.tasks.fast_lm"  # has a bar as the harness's own models have
FEWSHOT_SEED = 1234  # the harness's own default, so that the same examples stand before the same questions
# What of a task's configuration makes its prompts and scores; where the rows come from is left out.
PROMPT_FIELDS = (
    "output_type", "description", "doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix", "target_delimiter",
    "fewshot_delimiter", "process_docs", "process_results", "filter_list", "generation_kwargs", "metric_list",
)  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """A loaded task. split: which rows are asked. source: the local files by name with their SHA-256, or the Hub's set.

    own_fewshot: what the task's own configuration says of examples, None where it says nothing.
    """

    name: str
    task: Any = field(repr=False)
    split: str
    source: dict[str, str]
    own_fewshot: int | None = None

    @property
    def prompt_form(self) -> str:
        """A hash of what makes prompts and scores: the same on the Hub's data and on local files."""
        config = self.task.dump_config()
        kept = {name: config.get(name) for name in PROMPT_FIELDS}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Evaluated:
    """What the harness found: results by "metric,filter", one dict an item, and what it took."""

    ready: Ready
    results: dict[str, Any]
    samples: list[dict[str, Any]]
    seconds: float
    tokens: int | None
    cut: int | None
    positions: int | None
    fewshot: int
    scorer: str


def harness_version() -> str:
    """The installed harness's version; BadInput with the command that installs it where there is none."""
    try:
        import lm_eval  # noqa: F401

        return version("lm_eval")
    except ImportError:
        raise BadInput("--tasks: needs lm-eval for any model but the toy: pip install 'palimpsest-lm[eval]'") from None


# -- loading ------------------------------------------------------------------------------------------


def prepared(names: Sequence[str], task_data: str | None = None, fewshot: int | None = None) -> list[Ready]:
    """Load tasks by the harness's names or by our groups', their rows too; no model. Raises BadInput.

    task_data: a folder with the files; without it the Hub's data sets are used. fewshot: how many examples will be
    wanted (local training rows must be there then).
    """
    harness_version()
    wanted = expand(names)
    known = files.local_tasks()
    if task_data is None:
        return [ready for name in wanted for ready in _from_hub(name)]
    folder = files.data_folder(task_data)
    for name in [n for n in wanted if n not in known]:
        if name in _index().task_index:
            have = ", ".join(known)
            raise BadInput(f"--tasks {name}: has no form for local files (--task-data); those that have one: {have}")
        raise _unknown(name)
    there = files.listing(folder)
    missing, found = [], []
    for name in wanted:
        try:
            found.append((known[name], files.find(known[name], there, training=bool(fewshot))))
        except BadInput as error:
            missing.append(str(error))
    if missing:
        more = f" (and {len(missing) - 1} more of {len(wanted)} tasks are not there)" if len(missing) > 1 else ""
        raise BadInput(missing[0] + more)
    return [
        _from_files(task.name, tuple((role, tuple((p, files.digest(p)) for p in ps)) for role, ps in splits.items()))
        for task, splits in found
    ]


@lru_cache(maxsize=64)
def _from_files(name: str, splits: tuple[tuple[str, tuple[tuple[Path, str], ...]], ...]) -> Ready:
    """The harness's task with its rows from these files: its YAML included in one of ours, which the harness loads.

    splits: by role the files with their digests, so that a file that changed is read again.
    """
    local = files.local_tasks()[name]
    with quiet():
        manager = _index(local.folder)
        entry = manager.task_index.get(name) or _index().task_index.get(name)
        if entry is None or entry.yaml_path is None:
            raise BadInput(f"--tasks {name}: the installed harness ({harness_version()}) has no such task")
        roles = {role: f"{role}_split" for role in ("training", "validation", "test")}
        own = {roles[role]: None for role in roles} | {roles[role]: role for role, _ in splits}
        handed = {
            "rows": local.rows,
            "columns": list(local.columns),
            "splits": {role: [str(p.absolute()) for p, _ in paths] for role, paths in splits},
        }
        body = {"include": str(entry.yaml_path), "task": name, **own, "dataset_kwargs": handed}
        text = json.dumps(body)[:-1] + ', "custom_dataset": !function palimpsest.measures.tasks.rows.dataset}\n'
        with tempfile.TemporaryDirectory(prefix="palimpsest-task-") as scratch:
            form = Path(scratch) / f"{name}.yaml"
            form.write_text(text, encoding="utf-8")
            task = manager.load([str(form)])["tasks"][name]
    source = {path.name: digest for _, paths in splits for path, digest in paths}
    return Ready(name, task, splits[0][0], source, task.get_config("num_fewshot"))


@lru_cache(maxsize=64)
def _from_hub(name: str) -> tuple[Ready, ...]:
    """A task, tag or group of the harness as it is."""
    local = files.local_tasks().get(name)
    with quiet():
        manager = _index(local.folder) if local is not None else _index()
        entry = manager.task_index.get(name)
        if entry is None:
            raise _unknown(name)
        try:
            loaded = manager.load([name])["tasks"]
        except Exception as error:  # the libraries raise many kinds; all mean that it could not be had
            first = (str(error).strip().splitlines() or [""])[0][:160]
            config = entry.cfg or {}
            data = " ".join(str(config[k]) for k in ("dataset_path", "dataset_name") if config.get(k)) or "its data"
            raise BadInput(
                f"--tasks {name}: {data} could not be had from the Hub ({type(error).__name__}: {first}); "
                + (
                    f"where there is no network, download it ({local.get}) and name the folder with --task-data"
                    if local is not None
                    else "it is downloaded where there is a network, and has no form for local files"
                )
            ) from None
    return tuple(_as_is(found, task) for found, task in loaded.items())


def _as_is(name: str, task: Any) -> Ready:
    config = task.config
    split = config.test_split if task.has_test_docs() else config.validation_split
    source = {str(config.dataset_path): str(config.dataset_name or "")}
    return Ready(name, task, str(split), source, task.get_config("num_fewshot"))


@lru_cache(maxsize=16)
def _index(folder: str | None = None) -> Any:
    """The harness's task manager, for all its tasks (ten seconds to read) or those of one of its folders."""
    import lm_eval.tasks

    with quiet():
        if folder is None:
            return lm_eval.tasks.TaskManager()
        path = Path(lm_eval.tasks.__file__).parent / folder
        return lm_eval.tasks.TaskManager(include_path=str(path), include_defaults=False)


def _unknown(name: str) -> BadInput:
    from difflib import get_close_matches

    near = get_close_matches(name, [*GROUPS, *files.local_tasks()], n=3, cutoff=0.6)
    near = near or get_close_matches(name, _index().all_tasks, n=3, cutoff=0.6)
    told = f"did you mean {' or '.join(near)}?" if near else "`palimpsest tasks` lists groups, `lm_eval ls tasks` all"
    return BadInput(f"--tasks: neither we nor the harness ({harness_version()}) have a task {name!r}; {told}")


# -- running ------------------------------------------------------------------------------------------


def scorer_for(subject: Subject) -> Any:
    """The subject's model as an `LM` of the harness. The tokenizer is a copy: it may get a padding token."""
    from palimpsest.measures.tasks.fast_lm import FastLM

    model = subject.scorer("accuracy")
    with quiet():
        return FastLM(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer))


def evaluated(
    ready: Ready, scorer: Any, *, limit: int | None = None, fewshot: int | None = None, progress: Progress | None = None
) -> Evaluated:
    """Run one task by the harness's `evaluate`: the first `limit` items (all: None), `fewshot` examples before each.

    fewshot None: as many as the task's own configuration says, none where it says nothing. A 0 there is kept whatever
    is asked for. Both as in the harness's `simple_evaluate`.
    """
    from lm_eval.evaluator import evaluate

    task, started = ready.task, time.monotonic()
    own = ready.own_fewshot
    shots = own or 0 if fewshot is None or own == 0 else fewshot
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with quiet(progress):
        found = evaluate(lm=scorer, task_dict={ready.name: task}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = found["samples"][ready.name]
    tokens, cut, positions = _lengths(scorer, samples)
    seconds = time.monotonic() - started
    results, name = found["results"][ready.name], type(scorer).__name__
    return Evaluated(ready, results, samples, seconds, tokens, cut, positions, shots, name)


def _lengths(scorer: Any, samples: Sequence[dict[str, Any]]) -> tuple[int | None, int | None, int | None]:
    """Tokens of all requests as the model reads them; items of which a request was cut; the scorer's positions."""
    encode, positions = getattr(scorer, "tok_encode", None), getattr(scorer, "max_length", None)
    if encode is None or positions is None:
        return None, None, None
    total = cut = 0
    for sample in samples:
        requests = [a for a in sample["arguments"] if len(a) > 1 and isinstance(a[1], str)]
        lengths = [len(encode(context + continuation)) - 1 for context, continuation, *_ in requests]
        total += sum(min(length, positions) for length in lengths)
        cut += any(length > positions for length in lengths)
    return total, cut, int(positions)


class _Bar:
    """Stands in for the harness's tqdm: moves our progress instead, by the share of requests that are done."""

    progress: Progress | None = None

    def __init__(self, iterable: Any = None, *, total: float | None = None, **_: Any) -> None:
        self.iterable, self.total = iterable, total

    def __iter__(self) -> Iterator[Any]:
        yield from self.iterable

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, amount: float = 1) -> None:
        """Count `amount` requests."""
        if self.progress is not None and self.total:
            self.progress.advance(amount / self.total)

    def close(self) -> None:
        """Nothing is open."""

    def __getattr__(self, name: str) -> Any:  # set_description, set_postfix ...
        return lambda *_, **__: None


@contextlib.contextmanager
def quiet(progress: Progress | None = None) -> Iterator[None]:
    """Keep the harness's log lines, warnings, bars and prints away from the user; its bars move `progress` instead."""
    bar = type("Bar", (_Bar,), {"progress": progress})
    logger = logging.getLogger("lm_eval")
    level = logger.level
    patched = [
        (module, vars(module)["tqdm"])
        for name, module in list(sys.modules.items())
        if (name in ("tqdm", SCORER) or name.startswith("lm_eval.")) and isinstance(vars(module).get("tqdm"), type)
    ]
    bars = sys.modules.get("datasets")
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        if bars is not None:
            bars.disable_progress_bars()
        for module, _ in patched:
            module.tqdm = bar  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module, original in patched:
                module.tqdm = original  # type: ignore[attr-defined]
            logger.setLevel(level)
            if bars is not None:
                bars.enable_progress_bars()
