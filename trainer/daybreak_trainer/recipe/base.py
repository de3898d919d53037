"""What all parts of a recipe share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
RealShare = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: 1 would never take in anything."""
Source = Annotated[str, Field(min_length=1, max_length=1024)]
"""A local folder or a Hugging Face repository."""


def heads_that_divide(hidden_size: int, heads: int, multiple: int = 1) -> str:
    """The nearest numbers of heads, as "16 or 18", into which a width can be cut so that each has a
    `multiple` of numbers; empty where there is none."""
    most = 0 if hidden_size % multiple else hidden_size // multiple
    fit = [number for number in range(1, most + 1) if most % number == 0]
    nearest = [*[n for n in fit if n < heads][-1:], *[n for n in fit if n > heads][:1]]
    return " or ".join(map(str, nearest))


class RecipeModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused by name.

    A trick that can be switched off is a field that may be null.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )
