"""Which fingerprint for my case: `palimpsest choose`, from the committed survival results and the exact statistics.

What a mark survived stands in `recipes/survival.csv`, made from the studies' records by
`docs/results/survival/collect.py`; what it can claim is computed. Nothing else decides: where the bench has measured
nothing, that is what is said.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from palimpsest import registry
from palimpsest import statistics as st
from palimpsest.errors import BadInput, nearest
from palimpsest.inspecting import info
from palimpsest.method import build
from palimpsest.verdicts import ALPHA_OWNED, ALTERNATIVE, SequentialTest

TABLE = Path(__file__).parent / "recipes" / "survival.csv"
TOKENS = "the token ids of answers"
BY_TEXT = f"{TOKENS} (or keys drawn with --set rule=prefix, which was not measured)"
# (implant, preset, which other keys the table's rows are of, if so, what asking needs beyond answers)
MARKS: tuple[tuple[str, str | None, str, str], ...] = (
    ("hashchain", None, "", ""),
    ("utf", "bench", "one response for all", ""),
    ("utf", None, "", ""),
    ("if-sft", None, "", ""),
    ("perinucleus", "bench", "", BY_TEXT),
    ("embedding-swap", "bench", "", TOKENS),
    ("mergeprint", "bench", "triggers optimised for their responses", ""),
    ("trap-entries", "bench", "", ""),
    ("hardened", None, "", ""),
    ("weak-choices", None, "", ""),
    ("imf", "bench", "", ""),
    ("double-i", None, "", ""),
    ("if-simple", None, "", ""),
    ("if-emb", None, "", ""),
    ("if-adapter", "corrected", "", "the suspect's weights"),
)
WITHOUT = "lineage"  # no mark: `verify --original`
SHAPE = (
    "shape only: models of 1 to 2.4 million parameters, one to three seeds; no percentage carries over to another model"
)


@dataclass(frozen=True)
class Survival:
    """Runs of one kind of removal. stood: the claim was still borne (a mark that bears none: a key still answered);
    ruined: it was not, and neither was the model of use; lost: it was not, and the thief kept his model.
    studies: where from; worlds: of which models."""

    fear: str
    stood: int
    lost: int
    ruined: int
    removals: int
    studies: tuple[str, ...]
    worlds: tuple[str, ...]

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return self.stood + self.lost + self.ruined

    def __str__(self) -> str:
        ruin = f", {self.ruined} ruined the model too" if self.ruined else ""
        return (
            f"{self.fear}: stood in {self.stood} of {self.runs} runs (lost {self.lost}{ruin}; {self.removals} settings "
            f"on {', '.join(self.worlds)}; {', '.join(self.studies)})"
        )


@dataclass
class Option:
    """One way to be able to prove ownership. fits: whether the case allows it. claims: whether it bears a claim at the
    level asked for; tau, earliest, queries: what that takes. measured: whether its survival is that of this very mark.
    compared: the part of its survival that the order rests on. reasons and warnings are sentences."""

    name: str
    command: str
    fits: bool = True
    claims: bool = False
    measured: bool = True
    keys: int | None = None
    tau: int | None = None
    earliest: int | None = None
    queries: float | None = None
    survival: list[Survival] = field(default_factory=list)
    compared: list[Survival] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def held(self) -> float | None:
        """Mean over the feared kinds of the share of runs that the thief did not win; None where nothing is known.

        Of a kind that the short list has, its settings alone: there every mark has met the same thief.
        """
        known = [1 - s.lost / s.runs for s in self.compared]
        return sum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "held": self.held}


@dataclass
class Choice:
    """Options, the best first, with what is known of the model and what is known of none of them."""

    model: str
    facts: dict[str, Any]
    alpha: float
    options: list[Option]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {**asdict(self), "options": [o.to_json() for o in self.options]}


def choose(
    model: str | Path, *, fears: Sequence[str] = (), keys: int | None = None, alpha: float = ALPHA_OWNED,
    train: bool = True, black_box: bool = True, suspects: int = 1, base: bool = True,
) -> Choice:  # fmt: skip
    """Rank the fingerprints for a model: first what bears a claim at `alpha`, then what survived the feared removals.

    fears: kinds of removal (`fears_known`), none for all. train: whether the owner may still train the model before it
    is published. black_box: whether a suspect may be reachable by questions only. base: whether the base that the model
    was made from is at hand. suspects: how many will be scanned. Reads headers, loads no model. BadInput for what
    is misspelt.
    """
    if not 0 < alpha < 1:
        raise BadInput(f"--alpha {alpha:g}: expected a rate between 0 and 1")
    if suspects < 1 or (keys is not None and keys < 1):
        raise BadInput("--suspects-scanned and --key-count: at least 1")
    wanted = tuple(f.replace("_", "-") for f in fears) or fears_known()
    for fear in wanted:
        if fear not in fears_known():
            raise BadInput(f"--fear {fear}{nearest(fear, fears_known(), 'kind of removal')}")
    found = info(model)
    if found.kind != "model":
        raise BadInput(f"choose --model {model}: is {found.title}, and only a model can be marked")
    facts = {**found.facts, "title": found.title, "memory": {a.command: a.needs for a in found.abilities}}
    options = [_marked(*mark[:3], facts, wanted, keys, alpha, suspects) for mark in MARKS]
    for option, (*_, needed) in zip(options, MARKS, strict=True):
        if needed and black_box:
            option.fits = False
            option.warnings.insert(0, f"needs {needed}; an endpoint that gives text alone cannot be asked")
    options.append(_without(facts, wanted, black_box, base))
    for option in options[:-1]:
        if not train:
            option.fits = False
            option.warnings.insert(0, "a mark has to be trained into the weights before they are published")
    if not train and black_box:
        options[-1].warnings.append("without a mark, a suspect that only answers questions cannot be claimed at all")
    options.sort(key=_order)
    return Choice(str(model), facts, alpha, options, _notes(wanted, options, facts))


def _order(option: Option) -> tuple[Any, ...]:
    held = option.held
    unknown = held is None or not option.measured
    return (not option.fits, not option.claims, unknown, -(held or 0.0), option.name)


@cache
def table() -> tuple[dict[str, str], ...]:
    """The rows of the survival table."""
    with TABLE.open(encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


@cache
def fears_known() -> tuple[str, ...]:
    """The kinds of removal that were measured."""
    return tuple(dict.fromkeys(r["fear"] for r in table() if r["fear"]))


def survival(implant: str, fears: Sequence[str], compared: bool = False) -> list[Survival]:
    """What became of a mark under each kind of removal; kinds that were not measured are left out.

    compared: by the settings that all marks stood before alone, where there are such of this kind.
    """
    found = []
    for fear in fears:
        of_kind = [r for r in table() if r["fear"] == fear]
        common = compared and any(r["common"] for r in of_kind)
        rows = [r for r in of_kind if r["implant"] == implant and (r["common"] or not common)]
        ends = [end for row in rows for end in _ends(row)]
        if ends:
            found.append(
                Survival(
                    fear, ends.count("stood"), ends.count("lost"), ends.count("ruined"), len(rows),
                    tuple(dict.fromkeys(r["study"] for r in rows)), tuple(dict.fromkeys(r["model"] for r in rows)),
                )
            )  # fmt: skip
    return found


def _ends(row: dict[str, str]) -> Iterator[str]:
    """How each run of a row ended for the owner."""
    if row["implant"] == WITHOUT:
        yield "stood" if row["verdicts"] == "derivative" else "lost"
        return
    for hits, verdict in zip(row["hits"].split("|"), row["verdicts"].split("|"), strict=True):
        if int(hits) >= int(row["tau"] or 1):
            yield "stood"
        else:
            yield "ruined" if verdict == "ruined" else "lost"


def _marked(
    name: str, preset: str | None, others: str, facts: dict[str, Any], fears: Sequence[str], keys: int | None,
    alpha: float, suspects: int,
) -> Option:  # fmt: skip
    cls = registry.find(name, "fingerprints")
    command = f"palimpsest embed {name}" + (f" --preset {preset}" if preset else "")
    command += (f" --set keys={keys}" if keys is not None else "") + " --model MODEL --out DIR"
    option = Option(f"{name}" + (f" ({preset})" if preset else ""), command, measured=not others)
    try:
        made = build(cls, preset, {"keys": keys} if keys is not None else None)
    except BadInput as error:
        option.fits = False
        option.warnings.append(str(error))
        return option
    said = dict(made.committed())  # type: ignore[attr-defined]
    option.keys = said["keys"]
    _claim(option, said, alpha, suspects)
    of_rows = [r for r in table() if r["implant"] == name]
    option.survival, option.compared = survival(name, fears), survival(name, fears, compared=True)
    if not of_rows:
        option.warnings.append("what it survives is not in the table of studies that this advice rests on")
    elif others:
        option.warnings.append(
            f"measured was {name} with {others}; that this variant survives as well was not measured"
        )
    elif {r["keys"] for r in of_rows} != {str(option.keys)}:
        counts = ", ".join(dict.fromkeys(r["keys"] for r in of_rows))
        option.warnings.append(f"measured with {counts} keys, not with {option.keys}")
    option.reasons += _costs(of_rows)
    _fit(option, name, made, facts)
    return option


def _claim(option: Option, said: dict[str, Any], alpha: float, suspects: int) -> None:
    """What the mark can claim: exact, no record needed."""
    n, choices, places = said["keys"], said.get("choices"), said.get("places", 1)
    scanned = f" among {suspects} suspects" if suspects > 1 else ""
    if not said.get("distinct", True):
        option.warnings.append(
            f"cannot bear a claim at {alpha:g}: one response for all triggers is one observation, and no committed "
            "draw says how likely it was; hits only describe"
        )
        return
    if choices is None:
        option.warnings.append(f"cannot bear a claim at {alpha:g}: no committed draw gives the chance of a key")
        return
    null = places / choices
    option.tau = st.threshold(n, null, alpha, attempts=suspects)
    if option.tau is None:
        option.warnings.append(f"{n} keys cannot bear a claim at {alpha:g}{scanned}: see palimpsest plan --claim owned")
        return
    test = SequentialTest(n, null, alpha, suspects)
    option.claims, option.earliest = True, test.earliest
    option.queries = None if test.earliest is None else test.verdict([True]).numbers["expected"]["intact"]
    intact = f"if {100 * ALTERNATIVE:g} % of the keys answer"
    queries = f"; over HTTP {option.queries or 0:.1f} queries on average {intact}"
    option.reasons.append(
        f"bears a claim at {alpha:g}{scanned}: {option.tau} of {n} keys (chance of one {null:.3g}, committed draw)"
        + (queries if option.queries is not None else "")
    )
    if said.get("note"):
        option.warnings.append(said["note"])


def _costs(rows: Sequence[dict[str, str]]) -> list[str]:
    """What embedding cost in the studies, and what the marked models were then worth."""
    made = []
    for world in dict.fromkeys(r["model"] for r in rows):
        alone = [r for r in rows if r["model"] == world and not r["removal"]]
        tokens = [int(t) for r in alone for t in r["tokens"].split("|") if t]
        kept = [float(u) for r in alone for u in r["utility"].split("|") if u]
        if tokens:
            worth = f", utility of the marked model {min(kept):.2f} to {max(kept):.2f} of its base's" if kept else ""
            made.append(
                f"embedding took {median(tokens):,.0f} tokens of training (median of {len(tokens)}) on {world}{worth}"
            )
    return made


def _fit(option: Option, name: str, made: Any, facts: dict[str, Any]) -> None:
    if not hasattr(made, "tuning"):
        option.reasons.append("trains nothing")
        return
    adapter = made.tuning.adapter
    asked = "all weights" if adapter == "full" else "adapters"
    needed = next((m for command, m in facts["memory"].items() if f"({asked}" in command and m), None)
    if needed:
        option.reasons.append(f"trains {asked}: about {needed / 2**30:.1f} GiB for this model")
    if name == "utf":
        option.warnings.append(
            "needs at least 100 under-trained tokens in this vocabulary; embedding finds out, and says so"
        )
        if "tied" in str(facts.get("embeddings", "")) and adapter != "full":
            option.warnings.append(
                "input and output embeddings are tied, and LoRA leaves them alone: on the toy that was answered and "
                "stayed below probability 0.9; --set tuning.adapter=full trains all weights"
            )


def _without(facts: dict[str, Any], fears: Sequence[str], black_box: bool, base: bool) -> Option:
    option = Option("no mark (verify --original)", "palimpsest verify --model SUSPECT --original MODEL --base BASE")
    option.survival = option.compared = survival(WITHOUT, fears)
    option.fits = base and not black_box
    rows = [r for r in table() if r["implant"] == WITHOUT and r["removal"].startswith("not mine")]
    wrong = sum(r["verdicts"] == "derivative" for r in rows)
    option.reasons.append("nothing is trained and nothing is published with it: the weights themselves are compared")
    option.reasons.append(
        f"called {wrong} of {len(rows)} suspects that were not made from mine a derivative (alpha 0.01)"
    )
    option.warnings.append("its level is 0.01 over five twins, not 1e-06; one owner was measured, tuned by LoRA")
    if black_box:
        option.warnings.insert(0, "needs the suspect's weights; one that only answers questions cannot be compared")
    if not base:
        option.warnings.insert(0, "needs the base that the model was made from")
    return option


def _notes(fears: Sequence[str], options: Sequence[Option], facts: dict[str, Any]) -> list[str]:
    notes = [
        f"all numbers of survival are {SHAPE}",
        "stood: the claim was still borne at 1e-06 (of marks that bear none: any key still answered); a removal that "
        "ruins the model is no success for a thief",
        "the order counts only what was lost, and of kinds that the short list of removals has, its settings alone: "
        "every mark stood before them",
    ]
    unknown = [option.name for option in options if not option.survival]
    if unknown:
        notes.append(f"survival not measured: {', '.join(unknown)}")
    for option in options:
        if not option.survival:
            continue
        missing = [f for f in fears if f not in {s.fear for s in option.survival}]
        if missing:
            notes.append(f"{option.name}: not measured under {', '.join(missing)}")
    first = options[0]
    if first.fits and first.claims:
        lost = [s for s in first.survival if s.lost]
        if lost:
            worst = max(lost, key=lambda s: s.lost / s.runs)
            notes.append(
                f"{first.name} is the best of what was measured, not safe: {worst.fear} took the claim and left the "
                f"model of use in {worst.lost} of {worst.runs} runs"
            )
    if not any(o.fits and o.claims for o in options):
        notes.append("nothing here bears the claim that was asked for in this case")
    notes.append("a mark and the comparison of weights do not exclude each other: embed one, and keep base and twins")
    return notes
