"""Exact symmetries: the changes of an architecture's weights that leave its function as it is.

`gauge` holds them as data, `legality` says which an architecture allows and why not the others, `drawing` draws them,
`group` composes and inverts them, `editing` applies them tensor by tensor, `agreement` checks what was written.
Derivations: docs/protections/symmetries.md.
"""

from palimpsest.symmetry.gauge import Gauge, LayerGauge, Rotation, SignedPermutation, identity

__all__ = ["Gauge", "LayerGauge", "Rotation", "SignedPermutation", "identity"]
