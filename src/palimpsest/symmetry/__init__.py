"""Exact symmetries: the changes of an architecture's weights that leave its function as it is.

`gauge` holds them as data, `legality` says which an architecture allows and why not the others, `checking` refuses,
`drawing` draws, `group` composes and inverts, `editing` applies tensor by tensor (`acting`: the mathematics),
`agreement` checks what was written. Derivations: docs/protections/symmetries.md.
"""

from palimpsest.symmetry.checking import check, components_of
from palimpsest.symmetry.drawing import draw
from palimpsest.symmetry.editing import edit_for
from palimpsest.symmetry.gauge import Gauge, LayerGauge, Rotation, SignedPermutation, identity
from palimpsest.symmetry.group import compose, inverse
from palimpsest.symmetry.legality import COMPONENTS, Freedom, Legality, legal

__all__ = [
    "COMPONENTS",
    "Freedom",
    "Gauge",
    "LayerGauge",
    "Legality",
    "Rotation",
    "SignedPermutation",
    "check",
    "components_of",
    "compose",
    "draw",
    "edit_for",
    "identity",
    "inverse",
    "legal",
]
