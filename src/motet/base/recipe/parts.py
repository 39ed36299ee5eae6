"""What the tables of a recipe are made of."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False,
                              allow_inf_nan=False)  # fmt: skip


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _weight(given: Any) -> float | tuple[tuple[int, float], ...]:
    """A positive number, or points [[step, weight], ...] in order of steps, not all of weight 0."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0.0 < given < math.inf:
            raise ValueError(f"a weight must be positive, got {given}")
        return float(given)
    what = "a weight is a positive number, or points [[step, weight], ...] in order of steps, say [[0, 3], [100, 1]]"
    points = list(given) if isinstance(given, list | tuple) else []
    for place, point in enumerate(points):
        pair = isinstance(point, list | tuple) and len(point) == 2
        if not pair or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in point):
            raise ValueError(f"{what}; got {point!r}")
        step, value = point
        if step != int(step) or step < 0 or not 0.0 <= value < math.inf or (place and step < points[place - 1][0]):
            raise ValueError(f"{what}; got {given!r}")
    if not any(value > 0 for _, value in points):
        raise ValueError(f"{what}; got {given!r}")
    return tuple((int(step), float(value)) for step, value in points)


Weight = Annotated[float | tuple[tuple[int, float], ...], PlainValidator(_weight)]
"""Straight lines between the points, constant before the first and after the last; two points at one step: a jump."""
