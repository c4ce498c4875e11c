"""Attention aligned: the order of heads, value and output of each group, query and key by pairs or by matrices.

Orders come from products that no gauge inside a head changes: O_h V_g, and of query and key conj(q_j) (x) k_j for each
pair of turning dimensions, Q^T K for the others. They are compared by inner products of rows alone, never formed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from palimpsest.families.family import Place
from palimpsest.realignments.reading import Layer
from palimpsest.realignments.solved import Shape, Solved, moved_share, rescaled
from palimpsest.realignments.solving import inner, invertible, power, reciprocal_cost, reciprocal_factors, worthwhile
from palimpsest.symmetry.gauge import Sizes


def _by_head(rows: Tensor, count: int) -> Tensor:
    return rows.view(count, -1, rows.shape[1])


def _columns_by_head(weight: Tensor, count: int) -> Tensor:
    """(out, heads * d_h) to (heads, d_h, out)."""
    return weight.T.reshape(count, -1, weight.shape[0])


def _complex_pairs(rows: Tensor, count: int, pairs: int) -> Tensor:
    """Turning dimensions of each head as complex rows, (heads, pairs, in): dimension j + i dimension j + pairs."""
    heads = _by_head(rows, count)
    return torch.complex(heads[:, :pairs].contiguous(), heads[:, pairs : 2 * pairs].contiguous())


def head_similarity(mine: Layer, anchor: Layer, sizes: Sizes) -> Tensor:
    """(H anchor's, H mine) cosine of O_h V_g plus that of the query-key products: no gauge inside a head changes them.

    <O' V', O V> = sum (O'^T O) o (V' V^T); for a pair, the product conj(q) (x) k has <q, q'> conj(<k, k'>).
    """
    total, groups, shared = sizes.groups * sizes.shared, sizes.groups, sizes.shared
    mine_rows = {r: _by_head(mine.rows(r), total if r == "query" else groups) for r in ("query", "key", "value")}
    anchor_rows = {r: _by_head(anchor.rows(r), total if r == "query" else groups) for r in ("query", "key", "value")}
    outputs = [_columns_by_head(layer.weights["output"], total) for layer in (mine, anchor)]
    found = _product_cosine(outputs[1], anchor_rows["value"], outputs[0], mine_rows["value"], shared)
    rotary, pairs = 2 * sizes.pairs, sizes.pairs
    dot = torch.zeros(total, total)
    norms = [torch.zeros(total), torch.zeros(total)]
    if pairs:
        q = [_complex_pairs(layer.rows("query"), total, pairs) for layer in (anchor, mine)]
        k = [_complex_pairs(layer.rows("key"), groups, pairs) for layer in (anchor, mine)]
        for j in range(pairs):
            crossed = (k[0][:, j].conj() @ k[1][:, j].T).conj()
            dot += ((q[0][:, j].conj() @ q[1][:, j].T) * _spread(_spread(crossed, shared).T, shared).T).real
        for n in (0, 1):
            norms[n] += (power(q[n]) * power(k[n]).repeat_interleave(shared, 0)).sum(1)
    if sizes.still:
        still = [(rows["query"][:, rotary:], rows["key"][:, rotary:]) for rows in (anchor_rows, mine_rows)]
        dot += _products(*still[0], *still[1], shared)
        for n in (0, 1):
            norms[n] += _own_products(*still[n], shared)
    return found + dot / (norms[0][:, None] * norms[1][None, :]).sqrt().clamp_min(1e-30)


def _spread(table: Tensor, shared: int) -> Tensor:
    return table.repeat_interleave(shared, 0)


def _products(outer: Tensor, own: Tensor, outer_mine: Tensor, own_mine: Tensor, shared: int) -> Tensor:
    """(H, H mine): tr of (A^T B) per pair of heads, A = outer_h^T own_g(h), by inner products of rows only."""
    found = torch.empty(len(outer), len(outer_mine))
    size = own.shape[1]
    flat, own_flat = outer_mine.reshape(-1, outer.shape[2]), own_mine.reshape(-1, own.shape[2])
    crossed: dict[int, Tensor] = {}
    for h in range(len(outer)):
        g = h // shared
        if g not in crossed:
            crossed = {g: _spread((own[g] @ own_flat.T).view(size, -1, size).permute(1, 0, 2), shared)}
        both = (outer[h] @ flat.T).view(size, -1, size).permute(1, 0, 2)
        found[h] = (both * crossed[g]).sum((1, 2))
    return found


def _own_products(outer: Tensor, own: Tensor, shared: int) -> Tensor:
    return ((outer @ outer.mT) * _spread(own @ own.mT, shared)).sum((1, 2))


def _product_cosine(outer: Tensor, own: Tensor, outer_mine: Tensor, own_mine: Tensor, shared: int) -> Tensor:
    norms = _own_products(outer, own, shared)[:, None] * _own_products(outer_mine, own_mine, shared)[None, :]
    return _products(outer, own, outer_mine, own_mine, shared) / norms.sqrt().clamp_min(1e-30)


def align_heads(solved: Solved, anchor: Layer, shape: Shape) -> None:
    """Key-value groups, and the query heads of each, in the anchor's order."""
    sizes = shape.sizes
    total, groups, shared = sizes.groups * sizes.shared, sizes.groups, sizes.shared
    if not shape.form("heads") or total == 1:
        return
    alike = head_similarity(solved.aligned, anchor, sizes).view(groups, shared, groups, shared)
    inner_order = torch.arange(shared).expand(groups, groups, shared).clone()
    score = torch.empty(groups, groups)
    for a in range(groups):
        for b in range(groups):
            if shared > 1:
                _, columns = linear_sum_assignment(alike[a, :, b].numpy(), maximize=True)
                inner_order[a, b] = torch.from_numpy(columns)
            score[a, b] = alike[a, :, b][torch.arange(shared), inner_order[a, b]].sum()
    order = torch.from_numpy(linear_sum_assignment(score.numpy(), maximize=True)[1])
    queries = inner_order[torch.arange(groups), order]
    heads = (order[:, None] * shared + queries).flatten()
    solved.found["heads_moved"] = moved_share(heads)
    if solved.found["heads_moved"] == 0:
        return
    layer = solved.aligned
    layer.set_rows("query", _by_head(layer.rows("query"), total)[heads].flatten(0, 1))
    for role in ("key", "value"):
        layer.set_rows(role, _by_head(layer.rows(role), groups)[order].flatten(0, 1))
    columns = _columns_by_head(layer.weights["output"], total)[heads]
    layer.weights["output"] = columns.flatten(0, 1).T.contiguous()
    if shape.whole_norm:
        layer.gains["query"] = layer.gains["query"].view(total, -1)[heads].flatten()
        layer.gains["key"] = layer.gains["key"].view(groups, -1)[order].flatten()
    moved_groups = order if bool((order != torch.arange(groups)).any()) else None
    solved.gauge = replace(solved.gauge, groups=moved_groups, queries=queries if shared > 1 else None)


def _old_groups(solved: Solved, values: Tensor) -> Tensor:
    """What was found for the groups in their new order, put back into the old one, in which matrices are applied."""
    if solved.gauge.groups is None:
        return values
    made = torch.empty_like(values)
    made[solved.gauge.groups] = values
    return made


# -- matrices of a group -------------------------------------------------------------------------------------


def align_value_output(solved: Solved, anchor: Layer, shape: Shape) -> None:
    """One invertible matrix a group on values, its inverse on what output reads of the group's heads."""
    if not shape.form("value-output"):
        return
    sizes, layer = shape.sizes, solved.aligned
    total = sizes.groups * sizes.shared
    values = [_by_head(x.rows("value"), sizes.groups) for x in (layer, anchor)]
    outputs = [_columns_by_head(x.weights["output"], total).view(sizes.groups, sizes.shared, sizes.head, -1)
               for x in (layer, anchor)]  # fmt: skip
    stacked = [o.permute(0, 1, 3, 2).flatten(1, 2) for o in outputs]  # (groups, shared * hidden, d_h)
    found, before, after = [], 0.0, 0.0
    new_values, new_outputs = [], []
    for g in range(sizes.groups):
        n = invertible(values[0][g], values[1][g], stacked[0][g], stacked[1][g])
        new_values.append((n @ values[0][g].double()).float())
        new_outputs.append(torch.linalg.solve(n.T, stacked[0][g].double().T).T.float())
        before += reciprocal_cost(values[0][g], values[1][g], stacked[0][g], stacked[1][g])
        after += reciprocal_cost(new_values[-1], values[1][g], new_outputs[-1], stacked[1][g])
        found.append(n)
    if not worthwhile(before, after, sizes.groups * sizes.head**2, values[0].numel() + stacked[0].numel()):
        return
    matrices = torch.stack(found)
    layer.set_rows("value", torch.stack(new_values).flatten(0, 1))
    columns = torch.stack(new_outputs).view(sizes.groups, sizes.shared, -1, sizes.head)
    layer.weights["output"] = columns.permute(2, 0, 1, 3).reshape(-1, total * sizes.head).contiguous()
    solved.gauge = replace(solved.gauge, value_output=_old_groups(solved, matrices).float())
    spread = torch.linalg.svdvals(matrices)
    solved.found["value_output_condition"] = float((spread[:, 0] / spread[:, -1]).max())
    solved.found["value_output_moved"] = float((matrices - torch.eye(sizes.head)).norm() / matrices.norm())


def align_query_key(solved: Solved, anchor: Layer, shape: Shape) -> None:
    """One complex number a turning pair (signs where normed), one matrix on the dimensions that do not turn."""
    sizes, layer = shape.sizes, solved.aligned
    groups, shared, pairs, head = sizes.groups, sizes.shared, sizes.pairs, sizes.head
    form = shape.form("query-key")
    if not form:
        return
    signs = form == "signs"
    queries = [_by_head(x.rows("query"), groups * shared) for x in (layer, anchor)]
    keys = [_by_head(x.rows("key"), groups) for x in (layer, anchor)]
    new_query, new_key = queries[0].clone(), keys[0].clone()
    if pairs and form != "matrix":
        q = [_complex_pairs(x.rows("query"), groups * shared, pairs) for x in (layer, anchor)]
        q = [t.view(groups, shared, pairs, -1).transpose(1, 2).flatten(2).flatten(0, 1) for t in q]
        k = [_complex_pairs(x.rows("key"), groups, pairs).flatten(0, 1) for x in (layer, anchor)]
        if signs:
            agreement = (inner(q[1], q[0]) + inner(k[1], k[0])).real
            z = torch.where(agreement < 0, -1.0, 1.0).to(torch.complex128)
        else:
            z = reciprocal_factors(q[0], q[1], k[0], k[1], "complex")
        z32 = z.to(torch.complex64)[:, None]
        before = reciprocal_cost(q[0], q[1], k[0], k[1])
        after = reciprocal_cost(q[0] * z32, q[1], k[0] / z32.conj(), k[1])
        parameters = 0 if signs else 2 * len(z)
        if worthwhile(before, after, parameters, 2 * (q[0].numel() + k[0].numel())) and bool((z != 1).any()):
            turned = z32.view(groups, 1, pairs, 1).expand(groups, shared, pairs, 1).reshape(-1, pairs, 1)
            _put_pairs(new_query, _complex_pairs(layer.rows("query"), groups * shared, pairs) * turned)
            _put_pairs(new_key, _complex_pairs(layer.rows("key"), groups, pairs) / z32.view(groups, pairs, 1).conj())
            found = _old_groups(solved, z.view(groups, pairs))
            solved.gauge = replace(solved.gauge, query_key=found.to(torch.complex64))
            solved.found["query_key_scale_spread"] = float(z.abs().log().std())
            solved.found["query_key_turned"] = float((z.angle().abs() > 0.1).float().mean())
    if sizes.still and "matrix" in form:
        at = 2 * pairs
        q = [t[:, at:].reshape(groups, shared, head - at, -1).transpose(1, 2).flatten(2) for t in queries]
        k = [t[:, at:] for t in keys]
        matrices = torch.stack([invertible(q[0][g], q[1][g], k[0][g].mT, k[1][g].mT) for g in range(groups)])
        after_query = matrices.float() @ q[0]
        after_key = torch.linalg.solve(matrices.mT, k[0].double()).float()
        before = reciprocal_cost(q[0], q[1], k[0], k[1])
        after = reciprocal_cost(after_query, q[1], after_key, k[1])
        if worthwhile(before, after, matrices.numel(), q[0].numel() + k[0].numel()):
            new_query[:, at:] = after_query.view(groups, head - at, shared, -1).transpose(1, 2).flatten(0, 1)
            new_key[:, at:] = after_key
            solved.gauge = replace(solved.gauge, query_key_still=_old_groups(solved, matrices).float())
            spread = torch.linalg.svdvals(matrices)
            solved.found["query_key_condition"] = float((spread[:, 0] / spread[:, -1]).max())
    layer.set_rows("query", new_query.flatten(0, 1))
    layer.set_rows("key", new_key.flatten(0, 1))


def _put_pairs(heads: Tensor, pairs: Tensor) -> None:
    count = pairs.shape[1]
    heads[:, :count], heads[:, count : 2 * count] = pairs.real, pairs.imag


def align_query_key_norm(solved: Solved, anchor: Layer, shape: Shape) -> None:
    """Gains of the query's and key's norms: one factor a pair, one a dimension that does not turn."""
    layer, sizes = solved.aligned, shape.sizes
    if not shape.form("query-key-norm") or "query" not in layer.gains:
        return
    rows = [[_by_factor(x.gains[place], sizes, shape.whole_norm) for place in ("query", "key")]
            for x in (layer, anchor)]  # fmt: skip
    units = rows[0][0].shape[0]
    flat = [[t.flatten(0, 1) for t in pair] for pair in rows]
    s = reciprocal_factors(flat[0][0], flat[1][0], flat[0][1], flat[1][1], "real").float()
    changed = rescaled(s)
    s = torch.where(changed, s, torch.ones_like(s))
    if not bool(changed.any()):
        return
    s = s.view(units, -1)
    each = torch.cat([s[:, : sizes.pairs], s[:, : sizes.pairs], s[:, sizes.pairs :]], dim=1)
    places: tuple[Place, ...] = ("query", "key")
    for place in places:
        factor = each if place == "query" else 1 / each
        if shape.whole_norm and place == "query":
            factor = factor.repeat_interleave(sizes.shared, 0)
        layer.gains[place] = layer.gains[place] * factor.flatten()
        if place in layer.shifts:
            layer.shifts[place] = layer.shifts[place] * factor.flatten()
    solved.gauge = replace(solved.gauge, query_key_norm=_old_groups(solved, s) if shape.whole_norm else s[0])
    solved.found["query_key_norm_spread"] = float(s.abs().log().std())


def _by_factor(gain: Tensor, sizes: Sizes, whole: bool) -> Tensor:
    """(groups or 1, pairs + still, numbers that share a factor)."""
    x = gain.view(sizes.groups if whole else 1, -1, sizes.head)
    turning = torch.cat([x[..., : sizes.pairs], x[..., sizes.pairs : 2 * sizes.pairs]], dim=1)
    still = torch.cat([x[..., 2 * sizes.pairs :], torch.zeros_like(x[..., 2 * sizes.pairs :])], dim=1)
    return torch.cat([turning, still], dim=2).mT
