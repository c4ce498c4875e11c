"""mergekit's YAML files (version 0.1.5), read unchanged into a request.

What differs from mergekit on purpose is listed in docs/merging.md. Names, defaults and the order in which settings
count (source, slice, module, whole file) are mergekit's; so are its meanings of `base_model`: a model among the others
for methods without task vectors, the first of two for slerp, and left out of the models otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput, nearest
from palimpsest.merging.asking import read_dtype, read_part
from palimpsest.merging.jobs import per_model
from palimpsest.merging.parameters import layered
from palimpsest.merging.parameters import resolve as resolve_setting
from palimpsest.merging.request import MergeRequest, Part, Slice, Stretch, Vocabulary
from palimpsest.method import spoken

_TOP: tuple[str, ...] = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
)
_TOP += ("tokenizer_source", "tokenizer", "chat_template", "name")
_OUR_NAMES = {"dare_linear": "dare"}
# Names of parameters there, in any method, and what ours may be called.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    **{n: (n,) for n in ("weight", "density", "normalize", "lambda", "gamma", "epsilon", "t", "scale", "rescale")},
    **{n: (n,) for n in ("normalize_weights", "eps", "max_iter", "tol", "filter_wise", "select_topk")},
    "nuslerp_row_wise": ("nuslerp_row_wise", "row_wise"),
    "nuslerp_flatten": ("nuslerp_flatten", "flatten"),
}
_WITHOUT_EFFECT = {"int8_mask": "masks are never stored"}
# Defaults there, for parameters that a method of ours has too: a file that leaves them out means these.
_DEFAULTS: dict[str, Any] = {"density": 1.0, "lambda": 1.0, "gamma": 0.01, "epsilon": 0.15, "select_topk": 1.0}
_DEFAULTS |= {"nuslerp_row_wise": False, "nuslerp_flatten": True, "filter_wise": False, "normalize_weights": True}
_DEFAULTS |= {"eps": 1e-8, "max_iter": 10, "tol": 1e-5}
_DEFAULTS |= {"floor": 1e-6}  # of SCE: a rule that is built in there, and a parameter here
_NORMALIZED = ("linear", "ties", "della")
_RESCALED = ("dare", "dare-ties", "della", "della-linear")


def read_mergekit(file: Path, seed: int = 0) -> MergeRequest:
    """The request that a file makes. Raises BadInput that names file and field."""
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"--config {file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: is no text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise BadInput(f"{file}{f':{mark.line + 1}' if mark else ''}: is no YAML") from None
    if len(documents) != 1:
        raise BadInput(f"{file}: holds {len(documents)} documents; give one merge at a time")
    return _Reader(file, documents[0], seed).request()


@dataclass
class _Reader:
    """One file; `seen` holds the models that it names, by the text that names them."""

    file: Path
    content: Any
    seed: int
    seen: dict[str, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fail(self, where: str, problem: str) -> BadInput:
        return BadInput(f"{self.file}: {where}: {problem}" if where else f"{self.file}: {problem}")

    def request(self) -> MergeRequest:
        """Read it all."""
        top = self.mapping("", self.content, _TOP)
        if "name" in top:
            self.notes.append(f"{self.file.name}: name is not used; --out names the merge")
        if not isinstance(top.get("merge_method"), str):
            raise self.fail("merge_method", "is missing")
        self.cls = self.find(top["merge_method"])
        self.known = {spoken(f.name) for f in fields(self.cls)}
        self.own = per_model(self.cls)
        body, where = self.body(top)
        settings = self.settings("parameters", top.get("parameters"), self.known)
        module = self.settings(f"{where}parameters", body.get("parameters"), self.known) if where else {}
        settings = self.with_defaults({**settings, **{n: layered(v, settings.get(n)) for n, v in module.items()}})
        base = None if top.get("base_model") is None else self.part("base_model", top["base_model"])
        if base is None and body.get("slices"):
            base = self.base_of_slices(f"{where}slices", body["slices"])
        if base is None and self.cls.base == "needs":
            raise self.fail("base_model", f"is missing; {top['merge_method']} needs it")
        if body.get("models"):
            parts, slices = self.models(f"{where}models", body["models"], base), None
        else:
            parts, slices = self.slices(f"{where}slices", body["slices"], base)
        whole, donor = self.place_base(base, parts, settings, slices is not None)
        vocabulary, owner = self.tokenizer(top)
        stored = top.get("out_dtype") or top.get("dtype")
        if top.get("dtype") is not None:
            read_dtype(top["dtype"], f"{self.file}: dtype")
        template = top.get("chat_template")
        if template is not None and not isinstance(template, str):
            raise self.fail("chat_template", "is no text")
        return MergeRequest(
            self.cls.info.name,
            tuple(Part(p.model, p.settings, p.on or (whole if p.model.is_adapter else None)) for p in parts),
            whole,
            settings,
            slices,
            dtype=None if stored is None else read_dtype(stored, f"{self.file}: dtype"),
            vocabulary=vocabulary,
            seed=self.seed,
            donor=donor,
            owner=owner,
            chat_template=template,
            notes=tuple(self.notes),
        )

    def find(self, said: str) -> Any:
        try:
            return registry.find(_OUR_NAMES.get(said, said), "merges")
        except BadInput as error:
            raise self.fail("merge_method", str(error)) from None

    def mapping(self, where: str, found: Any, valid: Sequence[str]) -> Mapping[str, Any]:
        """A mapping of valid keys alone."""
        if not isinstance(found, Mapping):
            raise self.fail(where, "is no mapping of names to values")
        for key in found:
            if key not in valid:
                inside = f"{where}: " if where else ""
                raise self.fail("", f"{inside}unknown field {key!r}{nearest(str(key), valid, 'field')}")
        return found

    def sequence(self, where: str, found: Any) -> list[Any]:
        if not isinstance(found, list) or not found:
            raise self.fail(where, "is no list")
        return found

    def body(self, top: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Where models or slices are said, and how messages call it."""
        given = [n for n in ("models", "slices", "modules") if top.get(n)]
        if len(given) != 1:
            raise self.fail("", f"give one of models, slices and modules; here are {', '.join(given) or 'none'}")
        if given[0] != "modules":
            return {given[0]: top[given[0]]}, ""
        if not isinstance(top["modules"], Mapping) or len(top["modules"]) != 1:
            raise self.fail("modules", "only models of one module are merged here; name that one")
        ((name, body),) = top["modules"].items()
        body = self.mapping(f"modules.{name}", body, ("models", "slices", "parameters"))
        if bool(body.get("models")) == bool(body.get("slices")):
            raise self.fail(f"modules.{name}", "give either models or slices")
        return body, f"modules.{name}."

    # -- models ------------------------------------------------------------------------------------------------

    def part(self, where: str, said: Any) -> Part:
        """A model by what names it: a path or hub name, with `+ADAPTER`, or the same as a mapping."""
        text = self.text_of(where, said)
        if text not in self.seen:
            try:
                self.seen[text] = read_part(text, None)
            except BadInput as error:
                raise self.fail(where, str(error)) from None
        return self.seen[text]

    def text_of(self, where: str, said: Any) -> str:
        if isinstance(said, Mapping):
            said = self.mapping(where, said, ("model", "lora", "path", "revision"))
            if said.get("revision"):
                raise self.fail(where, self.revisions(str(said["revision"])))
            model = self.text_of(where, said.get("model") or said.get("path"))
            return f"{model}+{self.text_of(where, said['lora'])}" if said.get("lora") else model
        if not isinstance(said, str) or not said:
            raise self.fail(where, "names no model")
        path, at, revision = said.rpartition("@")
        if at and path and not Path(said).is_dir():
            raise self.fail(where, self.revisions(revision))
        return said

    @staticmethod
    def revisions(revision: str) -> str:
        return f"a revision is not read; run `hf download NAME --revision {revision}` and give the folder it prints"

    def models(self, where: str, said: Any, base: Part | None) -> list[Part]:
        parts = []
        for number, entry in enumerate(self.sequence(where, said)):
            place = f"{where}[{number}]"
            entry = self.mapping(place, entry, ("model", "parameters"))
            part = self.part(f"{place}.model", entry.get("model"))
            own = self.settings(f"{place}.parameters", entry.get("parameters"), self.own)
            if self.is_base(part, base):
                self.left_out(place, own)
            else:
                parts.append(Part(part.model, own, part.on))
        return parts

    def is_base(self, part: Part, base: Part | None) -> bool:
        """Whether a model is the base, and counts as that alone."""
        return base is not None and self.cls.base != "none" and _same(part, base)

    def left_out(self, place: str, own: Mapping[str, Any]) -> None:
        if own:
            self.notes.append(f"{self.file.name}: {place} is the base, so its {', '.join(own)} is not used")

    def base_of_slices(self, where: str, said: Any) -> Part | None:
        named = [s.get("base_model") for s in said if isinstance(s, Mapping)] if isinstance(said, list) else []
        found = [self.part(f"{where}.base_model", n) for n in named if n is not None]
        if found and (len(found) != len(named) or not all(_same(f, found[0]) for f in found)):
            raise self.fail(f"{where}.base_model", "all slices have one base here; name it once, as base_model")
        return found[0] if found else None

    def slices(self, where: str, said: Any, base: Part | None) -> tuple[list[Part], tuple[Slice, ...]]:
        parts: list[Part] = []
        made = []
        for number, entry in enumerate(self.sequence(where, said)):
            place = f"{where}[{number}]"
            entry = self.mapping(place, entry, ("sources", "base_model", "residual_weight", "parameters"))
            if entry.get("residual_weight") is not None:
                raise self.fail(f"{place}.residual_weight", "is not done here (nor by mergekit 0.1.5); leave it out")
            if entry.get("base_model") is not None and (
                base is None or not _same(self.part(f"{place}.base_model", entry["base_model"]), base)
            ):
                raise self.fail(f"{place}.base_model", "all slices have one base here; name it once, as base_model")
            sources = [
                self.stretch(f"{place}.sources[{i}]", s, base, parts)
                for i, s in enumerate(self.sequence(f"{place}.sources", entry.get("sources")))
            ]
            settings = self.settings(f"{place}.parameters", entry.get("parameters"), self.known)
            made.append(Slice(tuple(sources), settings))
        return parts, tuple(made)

    def stretch(self, place: str, said: Any, base: Part | None, parts: list[Part]) -> Stretch:
        said = self.mapping(place, said, ("model", "layer_range", "parameters"))
        part = self.part(f"{place}.model", said.get("model"))
        layers = said.get("layer_range")
        if not isinstance(layers, list) or len(layers) != 2 or not all(type(n) is int for n in layers):
            raise self.fail(f"{place}.layer_range", "expected [first, end], two whole numbers")
        own = self.settings(f"{place}.parameters", said.get("parameters"), self.own)
        if self.is_base(part, base):
            self.left_out(place, own)
            return Stretch(None, layers[0], layers[1])
        number = next((i for i, p in enumerate(parts) if _same(p, part)), len(parts))
        if number == len(parts):
            parts.append(part)
        return Stretch(number, layers[0], layers[1], own)

    def place_base(
        self, base: Part | None, parts: list[Part], settings: Mapping[str, Any], sliced: bool
    ) -> tuple[Checkpoint | None, int | None]:
        """(the base as a model of its own, else the part that gives configuration and tokenizer)."""
        if base is None:
            return None, None
        if self.cls.base != "none":
            if base.on is not None or base.model.is_adapter:
                raise self.fail("base_model", "a base with an adapter on it is not read; merge the two first")
            return base.model, None
        number = next((i for i, p in enumerate(parts) if _same(p, base)), len(parts))
        if number == len(parts):
            if not sliced and "weight" in self.known and "weight" not in settings:
                raise self.fail(
                    "base_model", f"counts as a model of {self.cls.info.name} and has no weight; list it under models"
                )
            parts.append(base)
        return None, number

    # -- parameters --------------------------------------------------------------------------------------------

    def settings(self, where: str, said: Any, valid: Iterable[str]) -> dict[str, Any]:
        """Parameters in our names; those without effect become notes."""
        if said is None:
            return {}
        if not isinstance(said, Mapping):
            raise self.fail(where, "is no mapping of names to values")
        found = {}
        for name, value in said.items():
            if name not in _PARAMETERS and name not in _WITHOUT_EFFECT and name not in self.known:
                known = [*_PARAMETERS, *_WITHOUT_EFFECT]
                raise self.fail(where, f"unknown parameter {name!r}{nearest(str(name), known, 'parameter')}")
            ours = self.our_name(name)
            if ours is None or ours not in valid:
                why = _WITHOUT_EFFECT.get(name, f"{self.cls.info.name} has no such parameter")
                if ours is not None:
                    why = "it is one for all models, and not read here by mergekit either"
                self.notes.append(f"{self.file.name}: {where}.{name} has no effect ({why})")
                continue
            for depth in (0.0, 1.0):
                resolve_setting(value, "", depth, f"{self.file}: {where}.{name}")
            found[ours] = self.rescaling(value) if ours == "rescale" else value
        return found

    def our_name(self, name: str) -> str | None:
        return next((n for n in _PARAMETERS.get(name, (name,)) if n in self.known), None)

    def rescaling(self, value: Any) -> Any:
        """true is mergekit's rescaling, which keeps the sum of magnitudes; false is none."""
        if self.hint("rescale") == "bool":
            return value
        if isinstance(value, bool):
            return "l1" if value else "none"
        if isinstance(value, list):
            return [self.rescaling(v) for v in value]
        return {**value, "value": self.rescaling(value["value"])} if isinstance(value, Mapping) else value

    def hint(self, name: str) -> str:
        return next(str(f.type) for f in fields(self.cls) if f.name == name)

    def with_defaults(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with mergekit's defaults where the file leaves something out."""
        method = self.cls.info.name
        defaults = {**_DEFAULTS, "normalize": method in _NORMALIZED}
        found = {}
        for name, value in defaults.items():
            ours = self.our_name(name)
            if ours is not None:
                found[ours] = value
        if "rescale" in self.known:
            found["rescale"] = self.rescaling(method in _RESCALED)
        return {n: layered(settings.get(n), found.get(n)) for n in {**found, **settings}}

    # -- tokenizer ---------------------------------------------------------------------------------------------

    def tokenizer(self, top: Mapping[str, Any]) -> tuple[Vocabulary, Checkpoint | None]:
        """What becomes of vocabularies, and whose is kept where that is said."""
        source, where = top.get("tokenizer_source"), "tokenizer_source"
        if top.get("tokenizer") is not None:
            if source:
                raise self.fail("tokenizer", "give it or tokenizer_source, not both")
            said = self.mapping("tokenizer", top["tokenizer"], ("source", "tokens", "pad_to_multiple_of"))
            for name in ("tokens", "pad_to_multiple_of"):
                if said.get(name):
                    raise self.fail(f"tokenizer.{name}", "is not done here; leave it out")
            source, where = said.get("source", "union"), "tokenizer.source"
        if source is None:
            return "unchecked", None
        if source in ("base", "union"):
            return source, None
        return "base", self.part(where, source).ground


def _same(first: Part, second: Part) -> bool:
    paths = [(p.model.path.resolve(), p.on.path.resolve() if p.on else None) for p in (first, second)]
    return paths[0] == paths[1]
