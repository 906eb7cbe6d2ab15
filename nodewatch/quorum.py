"""Majorities. Two majorities of the same nodes share a node: every safety argument here rests on that."""

from __future__ import annotations

from collections.abc import Iterable


def majority(nodes: int) -> int:
    """The smallest count of `nodes` configured nodes of which any two sets meet."""
    return nodes // 2 + 1


def kth_largest(values: Iterable[int], k: int) -> int | None:
    """The value that at least `k` of `values` reach; None when there are fewer than k. k counts from 1."""
    ordered = sorted(values, reverse=True)
    return ordered[k - 1] if 0 < k <= len(ordered) else None


def kth_smallest(values: Iterable[int], k: int) -> int | None:
    """The value by which at least `k` of `values` have passed; None when there are fewer than k. k counts
    from 1."""
    ordered = sorted(values)
    return ordered[k - 1] if 0 < k <= len(ordered) else None
