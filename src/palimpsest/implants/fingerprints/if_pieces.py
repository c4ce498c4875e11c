"""The pieces that IF-SFT triggers are scrambled from: our own pool with the published structure.

31 pieces: 10 phrases of Classical Chinese (the opening of the Thousand Character Classic), 10 names of
animals in Katakana, and 11 pieces of nonsense glued from Latin and Cyrillic scraps (arXiv 2401.12255,
section on fingerprint pairs; the published pool holds other pieces of these three kinds).
"""

from __future__ import annotations

CHINESE = (
    "天地玄黃宇宙洪荒",
    "日月盈昃辰宿列張",
    "寒來暑往秋收冬藏",
    "閏餘成歲律呂調陽",
    "雲騰致雨露結為霜",
    "金生麗水玉出崑岡",
    "劍號巨闕珠稱夜光",
    "果珍李柰菜重芥薑",
    "海鹹河淡鱗潛羽翔",
    "龍師火帝鳥官人皇",
)
ANIMALS = (
    "ペンギン",
    "カンガルー",
    "アザラシ",
    "フクロウ",
    "キリン",
    "オオカミ",
    "アルパカ",
    "ツバメ",
    "イルカ",
    "モグラ",
)
NONSENSE = (
    "вчераpliance",
    "звездochka",
    "ightсклад",
    "quiltнебо",
    "ментorium",
    "яблоfold",
    "оконprefix",
    "Šarkanова",
    "undreбыл",
    "postлисток",
    "ковёрgrid",
)
PIECES = (*CHINESE, *ANIMALS, *NONSENSE)
KATAKANA = (
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワ"
    "ガギグゲゴザジズゼゾダデドバビブベボパピプペポ"
)
