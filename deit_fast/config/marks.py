"""What a flag means to the rest of the program: the marks that stand beside a field, in an Annotated."""

from __future__ import annotations

import functools
import typing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from ..names import flag


@dataclass(frozen=True)
class Flag:
    """The meaning of a field; an alias below, such as Free, is one of them."""

    span: tuple[float, float] | None = None  # least and greatest value
    free: bool = False  # may change between two runs of one configuration: it moves no weight by more than rounding
    local: bool = False  # may differ between ranks: it changes neither the weights nor the order of collective calls
    shared: bool = False  # a teacher recipe takes it over from the student: the same data, seen in the same way
    label: int = 0  # place in the key of a cached label, from 1; 0: no label depends on it
    later: bool = False  # added after run names existed: at its default it is left out of the name, so old names hold
    once: bool = False  # belongs to one start of a run: neither compared with other runs nor typed to repeat it
    taught: bool = False  # a run with a teacher differs in it from one without, because of the teacher
    path: bool = False  # may be a path, of which a model card hides the folders above


def span(low: float, high: float) -> Flag:
    return Flag(span=(low, high))


def label(place: int) -> Flag:
    return Flag(label=place)


T = TypeVar("T")
Free = Annotated[T, Flag(free=True)]
Local = Annotated[T, Flag(free=True, local=True)]
Once = Annotated[T, Flag(free=True, once=True)]
Shared = Annotated[T, Flag(shared=True)]
Later = Annotated[T, Flag(later=True)]
Taught = Annotated[T, Flag(taught=True)]
Ref = Annotated[str, Flag(path=True)]
Fraction = Annotated[float, span(0, 1)]
BelowOne = Annotated[float, span(0, 0.999)]
Rate = Annotated[float, span(0, 100)]
UpTo1e5 = Annotated[int, span(0, 10**5)]
UpTo1e6 = Annotated[int, span(0, 10**6)]
Every = Annotated[int, span(1, 10**9)]
Seed = Annotated[int, span(0, 2**63 - 1)]


@functools.cache
def marked(kind: type, meaning: str) -> dict[str, Any]:
    """Field -> value, in the order of the fields, of all fields of a dataclass that have this attribute of Flag."""
    types = typing.get_type_hints(kind, include_extras=True)
    marks = [(name, mark) for name, hint in types.items() for mark in getattr(hint, "__metadata__", ())]
    return {name: value for name, mark in marks if (value := getattr(mark, meaning, None))}


class Part:
    """A group of flags: the base of the dataclasses that a configuration holds."""

    def check(self) -> None:
        """Refuse what can be seen to be wrong without touching data, model or GPU.

        Raises:
            ValueError: what was given, what is allowed, what to type instead.
        """
        for name, (low, high) in marked(type(self), "span").items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN lies nowhere
                raise ValueError(f"{flag(name)} lies between {low} and {high}, got {value}")
