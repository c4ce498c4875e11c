"""Plain text to read: a file, a folder of Parquet or Arrow files, or a corpus of the Hub.

It is read as `documents` (rows; pieces of a .txt file; articles of WikiText) or as one `stream`, the way most
perplexities on WikiText are given: all rows joined by an empty line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from palimpsest.errors import BadInput

ReadAs = Literal["auto", "documents", "stream"]
PIECE = 4000  # characters that a document of a plain text file has at least
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
SPLIT = "test"
TITLE = re.compile(r"(?m)^ = (?!= )[^\n]*? = ?$")  # an article's; its sections have two and more signs of equality
COLUMNS = ("text", "page", "content")
OPTION = "--perplexity"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
_FILE_NAMES = (".txt", ".jsonl", ".json", ".parquet", ".arrow", ".gz", ".zst")


def read_texts(reference: str | Path, read_as: ReadAs = "documents") -> list[str]:
    """The documents of a reference, or its one stream; `auto` is documents of a file and the stream of a corpus.

    reference: a text file, a .jsonl with `text`, a Parquet or Arrow file, FOLDER[:SPLIT] with such files, or a Hub
    corpus NAME[:CONFIG[:SPLIT]] (split: test), of which `wikitext` alone is WikiText-2 raw. Raises BadInput with what
    is wrong and where.
    """
    path, rest = Path(reference), str(reference).rpartition(":")
    if read_as == "auto":
        read_as = "documents" if path.is_file() else "stream"
    if path.is_file() and path.suffix not in (".parquet", ".arrow"):
        rows = _lines(path) if path.suffix == ".jsonl" else None
        if rows is None:
            content = _decoded(path)
            texts = [content] if read_as == "stream" else _pieces(content)
        else:
            texts = [_joined(rows)] if read_as == "stream" else list(rows)
    else:
        if path.is_file():
            rows = _columns([path])
        elif path.is_dir():
            rows = _columns(_files(path, ""))
        elif rest[0] and Path(rest[0]).is_dir():
            rows = _columns(_files(Path(rest[0]), rest[2]))
        else:
            rows = _from_hub(str(reference))
        texts = [_joined(rows)] if read_as == "stream" else _documents(rows)
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise BadInput(f"{reference}: holds no text")
    return texts


def articles(text: str) -> list[str] | None:
    """The articles of a text in WikiText's form, each from its title on; None for any other text."""
    starts = [m.start() for m in TITLE.finditer(text)]
    if not starts:
        return None
    head = [text[: starts[0]]] if text[: starts[0]].strip() else []
    return head + [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def _pieces(content: str) -> list[str]:
    """Articles of WikiText, else whole paragraphs together until they have `PIECE` characters."""
    found = articles(content)
    if found is not None:
        return found
    texts, piece = [], ""
    for paragraph in content.split("\n\n"):
        piece += paragraph + "\n\n"
        if len(piece) > PIECE:
            texts.append(piece)
            piece = ""
    return [*texts, piece]


def _documents(rows: Sequence[str]) -> list[str]:
    """Rows as documents; rows that are lines of WikiText become its articles."""
    if any(TITLE.fullmatch(row.rstrip("\n")) for row in rows):
        found = articles("".join(row if row.endswith("\n") else f"{row}\n" for row in rows))
        return found or list(rows)
    return list(rows)


def _joined(rows: Iterable[str]) -> str:
    return "\n\n".join(rows)


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text: {error}") from None


def _lines(path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            texts.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise BadInput(f"{path}:{number}: is no JSON object with `text`") from None
    return texts


def _files(folder: Path, split: str) -> list[Path]:
    """Parquet or Arrow files of a folder that belong to a split: by their names or those of the folders they are in."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".parquet", ".arrow") and p.is_file())
    if not found:
        raise BadInput(f"{OPTION} {folder}: has no .parquet or .arrow file")

    def of(path: Path) -> str:
        inside = path.relative_to(folder)
        words = [*inside.parts[:-1], *re.split(r"[-_.]", inside.name)]
        return next((w for w in words if w in ("train", "validation", "test", "valid", "dev", split)), "")

    splits = sorted({of(p) for p in found})
    wanted = split or (SPLIT if SPLIT in splits else splits[0] if len(splits) == 1 else "")
    chosen = [p for p in found if of(p) == wanted]
    if not chosen:
        known = ", ".join(s or "(none)" for s in splits)
        raise BadInput(
            f"{OPTION} {folder}: has no split {wanted or SPLIT!r}; its files are of {known}: say FOLDER:SPLIT"
        )
    return chosen


def _columns(files: Sequence[Path]) -> list[str]:
    """The text column of Parquet and Arrow files."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise BadInput("reading Parquet or Arrow needs pyarrow: pip install 'palimpsest-lm[eval]'") from None
    rows: list[str] = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                table = parquet.read_table(file)
            else:
                with arrow.memory_map(str(file)) as source:
                    table = arrow.ipc.open_stream(source).read_all()
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: cannot be read: {(str(error).splitlines() or ['damaged'])[0]}") from None
        texts = [f.name for f in table.schema if arrow.types.is_string(f.type) or arrow.types.is_large_string(f.type)]
        rows += _texts(table.column(_column(texts, table.column_names, str(file))).to_pylist())
    return rows


def _column(texts: Sequence[str], every: Sequence[str], where: str) -> str:
    named = next((c for c in COLUMNS if c in texts), texts[0] if len(texts) == 1 else None)
    if named is None:
        raise BadInput(f"{where}: has no column {' or '.join(COLUMNS)}; it has {', '.join(every) or 'none'}")
    return named


def _texts(values: Iterable[Any]) -> Iterator[str]:
    return (v for v in values if isinstance(v, str))


def _from_hub(reference: str) -> list[str]:
    is_path = reference.startswith((".", "/", "~")) or reference.endswith(_FILE_NAMES) or reference.count("/") > 1
    if is_path or not _HUB_NAME.fullmatch(reference):
        raise BadInput(f"{OPTION} {reference}: there is no such file")
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"{OPTION} {reference}: is no file; a Hub corpus needs pip install 'palimpsest-lm[eval]'"
        ) from None
    name, config, split = [*reference.split(":"), "", ""][:3]
    if name in ("wikitext", "wikitext-2"):
        name, config, split = WIKITEXT[0], config or WIKITEXT[1], split or WIKITEXT[2]
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # it tells of every retry; the end is told below, in one line
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or SPLIT)
    except Exception as error:  # the library raises many kinds; all mean that it could not be had
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{OPTION} {reference}: is no file, and neither the Hub nor the cache of `datasets` gave such a corpus "
            f"({first}); give a text file, or a folder with its Parquet files"
        ) from None
    finally:
        hub.setLevel(level)
    texts = [n for n, kind in loaded.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    return list(_texts(loaded[_column(texts, list(loaded.features), reference)]))
