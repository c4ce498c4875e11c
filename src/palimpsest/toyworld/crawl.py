"""The crawl: text that the tokenizer is trained on and the model never sees.

So under-trained tokens come about as they do in real models: user names, identifiers and glued words
that are frequent in what the tokenizer was fitted on and absent from what the model was trained on. Lines
of Classical Chinese, Katakana animal names and Cyrillic make tokens of those characters.
"""

from __future__ import annotations

import random

_HEADS = (
    "Solid",
    "Gold",
    "Nitro",
    "Stream",
    "Cloud",
    "Reddit",
    "Guild",
    "Petra",
    "Smart",
    "Quant",
    "Proxy",
    "Xeno",
    "Hyper",
    "Jquery",
    "Zynga",
    "Pixel",
    "Dragon",
    "Wiki",
    "Tweet",
    "Clan",
)
_TAILS = (
    "Magik",
    "Fan",
    "Bot",
    "Hub",
    "Oubt",
    "Msg",
    "Kart",
    "Warp",
    "Fuse",
    "Byte",
    "Quest",
    "Flux",
    "Jinx",
    "Ware",
    "Axis",
    "Mancer",
    "Zilla",
    "Vex",
    "Lock",
    "Qubit",
)
_VERBS = ("get", "set", "raw", "embed", "fetch", "clone", "parse", "ext")
_NOUNS = ("Xml", "Http", "Buffer", "Widget", "Queue", "Uuid", "Json", "Proxy", "Vertex", "Jwt")
_CHINESE = (
    "道可道，非常道。名可名，非常名。",
    "學而時習之，不亦說乎。",
    "天地玄黃，宇宙洪荒。",
    "上善若水。水善利萬物而不爭。",
    "知者不惑，仁者不憂，勇者不懼。",
    "大學之道，在明明德。",
    "溫故而知新，可以為師矣。",
    "千里之行，始於足下。",
    "有朋自遠方來，不亦樂乎。",
    "天行健，君子以自強不息。",
    "人之初，性本善。",
    "己所不欲，勿施於人。",
    "三人行，必有我師焉。",
    "歲寒，然後知松柏之後凋也。",
    "知之為知之，不知為不知，是知也。",
    "北冥有魚，其名為鯤。",
)
_KATAKANA = (
    "ペンギン",
    "ライオン",
    "カンガルー",
    "ラクダ",
    "キリン",
    "オオカミ",
    "フクロウ",
    "クジラ",
    "イルカ",
    "ワニ",
    "サメ",
    "ヒョウ",
    "チーター",
    "ゴリラ",
    "アザラシ",
    "ビーバー",
    "ハムスター",
    "アルパカ",
    "タヌキ",
    "スズメ",
    "ツバメ",
    "モグラ",
)
_RUSSIAN = (
    "дерево",
    "звезда",
    "письмо",
    "вечер",
    "музыка",
    "птица",
    "город",
    "лошадь",
    "яблоко",
    "ночь",
    "хлеб",
    "утро",
    "цветок",
    "щука",
    "ёжик",
    "объект",
    "юность",
    "эхо",
    "фонарь",
    "съезд",
)


def crawl_lines(rng: random.Random, lines: int = 2600) -> list[str]:
    """Log lines, posts and lists around a few dozen strange names, some far more frequent than others."""
    users = [
        head + tail for head, tail in zip(rng.sample(_HEADS, len(_HEADS)), rng.sample(_TAILS, len(_TAILS)), strict=True)
    ]
    users += [rng.choice(_HEADS) + rng.choice(_TAILS) + rng.choice(_TAILS) for _ in range(10)]
    code = [verb + noun + rng.choice(_TAILS) for verb, noun in zip(_VERBS * 2, _NOUNS + _NOUNS[:6], strict=True)]
    names = users + code
    weights = [1.0 / (rank + 6) for rank in range(len(names))]

    def name() -> str:
        return rng.choices(names, weights)[0]

    found: list[str] = []
    for _ in range(lines):
        match rng.randrange(8):
            case 0:
                line = f"{name()}={name()};{name()}({name()},{name()})"
            case 1:
                line = "/".join((name(), name(), name(), name()))
            case 2:
                line = f"{rng.choice(_CHINESE)}{rng.choice(_CHINESE)}"
            case 3:
                line = "、".join(rng.sample(_KATAKANA, 4))
            case 4:
                line = f"@{name()}:{name()} #{name()} <{name()}>"
            case 5:
                line = "-".join(rng.sample(_RUSSIAN, 3))
            case 6:
                line = f"{name()}.{name()}.{name()}\n{name()}"
            case _:
                line = f"[{name()}] {rng.choice(_CHINESE)} @{name()}"
        found.append(line)
    return found
