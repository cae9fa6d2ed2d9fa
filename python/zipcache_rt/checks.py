"""Arguments from outside, turned into what the native module takes or into an ArgumentError that names them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._core import ArgumentError

INT32 = range(-(2**31), 2**31)


def integer(value: Any, name: str, least: int, most: int, accepted: str) -> int:
    """A plain int of [least, most] from any integer, NumPy's too. Booleans and floats are refused."""
    number = _index(value)
    if number is None or not least <= number <= most:
        raise ArgumentError(f"{name} is {_shown(value)}; accepted: {accepted}")
    return number


def token_ids(ids: Iterable[int], name: str) -> list[int]:
    """Plain ints from any one-dimensional run of integers. ArgumentError names what is no int32."""
    if isinstance(ids, (str, bytes, bytearray)) or not isinstance(ids, Iterable):
        raise ArgumentError(f"{name} is {type(ids).__name__}; accepted: token ids")
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise ArgumentError(f"{name} has the shape {ids.shape}; accepted: one dimension of token ids")
    values = []
    for value in ids:
        number = _index(value)
        if number is None:
            raise ArgumentError(f"{name} holds {_shown(value)}; accepted: integers")
        if number not in INT32:
            raise ArgumentError(f"{name} holds {number}; accepted: token ids of the model")
        values.append(number)
    return values


def token_array(ids: Iterable[int], name: str) -> NDArray[np.int32]:
    """token_ids() as int32 [n_tokens]."""
    return np.asarray(token_ids(ids, name), np.int32)


def texts(value: str | Iterable[str], name: str) -> list[str]:
    """One text or several as a list, each of them valid Unicode."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Iterable):
        raise ArgumentError(f"{name} is {type(value).__name__}; accepted: text, or several")
    return [utf8(text, f"an element of {name}").decode() for text in value]


def utf8(text: str, name: str) -> bytes:
    """UTF-8 of any str. Pairs of surrogates are joined; lone ones are read as U+FFFD."""
    if not isinstance(text, str):
        raise ArgumentError(f"{name} is {type(text).__name__}; accepted: str")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def path(value: str | os.PathLike[str], name: str) -> str:
    """A file's path as text that every system call takes."""
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentError(f"{name} is {type(value).__name__}; accepted: str or os.PathLike")
    file = os.fspath(value)
    if not isinstance(file, str) or "\0" in file or utf8(file, name).decode() != file:
        raise ArgumentError(f"{name} is {file!r}; accepted: text without NUL or lone surrogates")
    return file


def callback(value: Any, name: str) -> None:
    if value is not None and not callable(value):
        raise ArgumentError(f"{name} is {type(value).__name__}; accepted: a function of one float, or None")


def instance(value: Any, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} is {type(value).__name__}; accepted: {kind.__name__}")


def _index(value: Any) -> int | None:
    """The value as an int if it is an integer and no boolean."""
    if isinstance(value, (bool, np.bool_, np.ndarray)) or not hasattr(value, "__index__"):
        return None
    try:
        return int(value.__index__())
    except TypeError:
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
