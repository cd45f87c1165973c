"""Derivatives of the oracles: NumPy arrays that remember how they were computed.

An oracle computes with arrays or with `Traced` arrays, in the same lines. `gradients` walks back
from a traced result to the arrays it came from. The precision is that of the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import numpy as np

Pullback = Callable[[np.ndarray], np.ndarray]
_ORDER = count()


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """An array with its origin.

    Attributes:
        value: float array.
        parents: each array it was computed from, with the map from the gradient of this array to
            its share of the gradient of that one.
        order: grows with the time of creation; parents have smaller numbers.
    """

    def __init__(self, value: np.ndarray, parents: Iterable[tuple[Traced, Pullback]] = ()) -> None:
        self.value = np.asarray(value)
        self.parents = tuple(parents)
        self.order = next(_ORDER)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    @property
    def T(self) -> Traced:
        return Traced(self.value.T, [(self, lambda gradient: gradient.T)])

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Traced:
        def scatter(gradient: np.ndarray) -> np.ndarray:
            whole = np.zeros(self.shape, self.dtype)
            if isinstance(index, np.ndarray):
                np.add.at(whole, index, gradient)  # Rows may be taken more than once.
            else:
                whole[index] = gradient
            return whole

        return Traced(self.value[index], [(self, scatter)])

    def __pow__(self, exponent: int) -> Traced:
        return self if exponent == 1 else self * self ** (exponent - 1)

    def reshape(self, *shape: int) -> Traced:
        value = self.value.reshape(*shape)
        return Traced(value, [(self, lambda gradient: gradient.reshape(self.shape))])

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Traced:
        value = self.value.sum(axis=axis, keepdims=keepdims)

        def spread(gradient: np.ndarray) -> np.ndarray:
            if axis is not None and not keepdims:
                gradient = np.expand_dims(gradient, axis)
            return np.broadcast_to(gradient, self.shape)

        return Traced(value, [(self, spread)])

    def mean(self, axis: int | None = None, keepdims: bool = False) -> Traced:
        total = self.sum(axis, keepdims)
        return total * (total.value.size / self.value.size)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc not in _PULLBACKS:
            return NotImplemented
        values = [value_of(x) for x in inputs]
        result = ufunc(*values)
        return Traced(
            result,
            [
                (x, _shaped(x.shape, lambda g, rule=rule: rule(g, result, *values)))
                for x, rule in zip(inputs, _PULLBACKS[ufunc], strict=True)
                if isinstance(x, Traced)
            ],
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[function](*args, **kwargs)


def value_of(x: Any) -> np.ndarray:
    """The plain array; a constant as far as derivatives go."""
    return x.value if isinstance(x, Traced) else np.asarray(x)


def gradients(result: Traced, inputs: dict[str, Traced]) -> dict[str, np.ndarray]:
    """Derivative of a scalar result by each of the named arrays; 0 where it does not depend."""
    assert result.shape == ()
    nodes, open_nodes = {id(result): result}, [result]
    while open_nodes:
        for parent, _ in open_nodes.pop().parents:
            if id(parent) not in nodes:
                nodes[id(parent)] = parent
                open_nodes.append(parent)
    total = {id(result): np.ones((), result.dtype)}
    for node in sorted(nodes.values(), key=lambda node: node.order, reverse=True):
        for parent, pullback in node.parents:
            total[id(parent)] = total.get(id(parent), 0.0) + pullback(total[id(node)])
    return {name: total.get(id(x), np.zeros(x.shape, x.dtype)) for name, x in inputs.items()}


def _shaped(shape: tuple[int, ...], pullback: Pullback) -> Pullback:
    """Sum over the axes along which an operand was repeated."""

    def summed(gradient: np.ndarray) -> np.ndarray:
        share = pullback(gradient)
        if share.shape == shape:
            return share
        share = share.sum(axis=tuple(range(share.ndim - len(shape))))
        repeated = tuple(i for i, size in enumerate(shape) if size == 1 != share.shape[i])
        return share.sum(axis=repeated, keepdims=True)

    return summed


# Of each function the rules of its operands: (gradient, result, operands) -> gradient of operand.
_PULLBACKS: dict[Any, tuple[Callable[..., np.ndarray], ...]] = {
    np.add: (lambda g, y, a, b: g, lambda g, y, a, b: g),
    np.subtract: (lambda g, y, a, b: g, lambda g, y, a, b: -g),
    np.multiply: (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    np.divide: (lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b),
    np.negative: (lambda g, y, a: -g,),
    np.matmul: (lambda g, y, a, b: g @ b.T, lambda g, y, a, b: a.T @ g),
    np.sqrt: (lambda g, y, a: g / (2 * y),),
    np.exp: (lambda g, y, a: g * y,),
    np.log: (lambda g, y, a: g / a,),
    np.tanh: (lambda g, y, a: g * (1 - y**2),),
}


def _concatenate(parts: Iterable[Any], axis: int = 0) -> Traced:
    parts = list(parts)
    ends = np.cumsum([value_of(part).shape[axis] for part in parts])
    parents = []
    for part, end in zip(parts, ends, strict=True):
        if isinstance(part, Traced):
            own = np.arange(end - part.shape[axis], end)
            parents.append((part, lambda g, own=own: g.take(own, axis=axis)))
    return Traced(np.concatenate([value_of(part) for part in parts], axis=axis), parents)


def _where(condition: np.ndarray, a: Any, b: Any) -> Traced:
    return a * condition + np.where(condition, 0.0, b)


_FUNCTIONS: dict[Any, Callable[..., Traced]] = {np.concatenate: _concatenate, np.where: _where}
