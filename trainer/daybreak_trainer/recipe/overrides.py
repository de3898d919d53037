"""`spec.recipe` of a TrainingRun: the recipe's models with every field optional.

Derived from `Recipe`, so a new recipe field is a new API field at once. No field has a default:
absent means the preset's value, and a default in the schema would silently override presets.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.alias_generators import to_camel

from daybreak_trainer.recipe.model import Recipe, RecipeModel


class _Overrides(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


@cache
def overrides_of(model: type[BaseModel]) -> type[BaseModel]:
    """`model` with every field optional, at every depth; the items of a list stay complete.

    `preset` stays required: without it there is nothing to override.
    """
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        description = info.description
        if isinstance(annotation, type) and issubclass(annotation, RecipeModel):
            description = description or annotation.__doc__
            annotation = overrides_of(annotation)
        for constraint in info.metadata:
            annotation = Annotated[annotation, constraint]
        if name == "preset":
            fields[name] = (annotation, Field(description=description))
        else:
            fields[name] = (annotation | None, Field(default=None, description=description))
    return create_model(
        f"{model.__name__}Overrides", __base__=_Overrides, __doc__=model.__doc__, **fields
    )


RecipeOverrides = overrides_of(Recipe)
