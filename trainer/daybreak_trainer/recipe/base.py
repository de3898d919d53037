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
Source = Annotated[str, Field(min_length=1, max_length=1024)]
"""A local folder or a Hugging Face repository."""


class RecipeModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused by name.

    A trick that can be switched off is a field that may be null.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )
