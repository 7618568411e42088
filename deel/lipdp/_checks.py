"""Argument checks that share one message: who, expected, received, remedy."""

import math
import numbers

__all__ = ["choice", "integer", "integers", "message", "number"]


def message(who, expected, received, remedy):
    """The one sentence shape of every refusal in the library."""
    return f"{who}: expected {expected}. Received: {received}. {remedy}".rstrip()


def number(
    who,
    name,
    value,
    *,
    above=None,
    at_least=None,
    below=None,
    at_most=None,
    finite=True,
    remedy="",
):
    """Returns `value` as a float, or says why it cannot be one.

    Args:
        who: the class or function that asks, for the message.
        name: the name of the argument.
        value: what the caller passed.
        above, at_least, below, at_most: float, the range; strict for `above` and `below`.
        finite: bool, whether infinity is refused (NaN always is).
        remedy: str, what to do instead.

    Raises:
        TypeError: if `value` is not a real number.
        ValueError: if `value` is out of range.
    """
    limits = [
        (above, ">", lambda v, limit: v > limit),
        (at_least, ">=", lambda v, limit: v >= limit),
        (below, "<", lambda v, limit: v < limit),
        (at_most, "<=", lambda v, limit: v <= limit),
    ]
    used = [(limit, sign, holds) for limit, sign, holds in limits if limit is not None]
    kind = "a finite number" if finite else "a number"
    expected = f"{name} to be {kind}" + "".join(
        f"{' and' if i else ''} {sign} {limit}" for i, (limit, sign, _) in enumerate(used)
    )
    received = f"{name}={value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(message(who, expected, received, remedy))
    value = float(value)
    if math.isnan(value) or (finite and math.isinf(value)) or not all(holds(value, limit) for limit, _, holds in used):
        raise ValueError(message(who, expected, received, remedy))
    return value


def integer(who, name, value, *, at_least=1, at_most=None, remedy=""):
    """Returns `value` as an int in range, or says why it cannot be one."""
    upper = "" if at_most is None else f" and <= {at_most}"
    expected = f"{name} to be an integer >= {at_least}{upper}"
    received = f"{name}={value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message(who, expected, received, remedy))
    if value < at_least or (at_most is not None and value > at_most):
        raise ValueError(message(who, expected, received, remedy))
    return int(value)


def integers(who, name, value, *, length=None, at_least=1, remedy=""):
    """Returns one integer or a sequence of them as a tuple of ints; one integer stands for `length` equal ones."""
    if isinstance(value, (tuple, list)):
        values = tuple(value)
    else:
        values = (value,) * (length or 1)
    values = tuple(integer(who, name, v, at_least=at_least, remedy=remedy) for v in values)
    if length is not None and len(values) != length:
        expected = f"{name} to be one integer or {length} of them"
        raise ValueError(message(who, expected, f"{name}={value!r}", remedy))
    return values


def choice(who, name, value, table, *, error=ValueError, remedy=""):
    """Returns `table[value]`; the message lists the keys of the table the code uses."""
    try:
        if value in table:
            return table[value]
    except TypeError:  # an unhashable value is in no table
        pass
    expected = f"{name} to be one of {', '.join(repr(key) for key in table)}"
    raise error(message(who, expected, f"{name}={value!r}", remedy))
