"""`spec.recipe` of a TrainingRun: the recipe's models with every field optional.

Derived from `Recipe`, so a new recipe field is a new API field at once. No field has a default:
absent means the preset's value, and a default in the schema would silently override presets. A
field that the recipe lets be null may be null here too: that switches off what the preset has on.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model
from pydantic.alias_generators import to_camel

from daybreak_trainer.recipe.base import RecipeModel
from daybreak_trainer.recipe.model import Recipe


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
        options = _options(info.annotation)
        annotation: Any = info.annotation
        description = info.description
        (wanted, *others) = [option for option in options if option is not NoneType]
        if not others and isinstance(wanted, type) and issubclass(wanted, RecipeModel):
            description = description or wanted.__doc__
            annotation = overrides_of(wanted)
        for constraint in info.metadata:
            annotation = Annotated[annotation, constraint]
        if name == "preset":
            fields[name] = (annotation, Field(description=description))
            continue
        nullable: dict[str, JsonValue] = {"nullable": True}
        extra = nullable if NoneType in options else None
        fields[name] = (
            annotation | None,
            Field(default=None, description=description, json_schema_extra=extra),
        )
    return create_model(
        f"{model.__name__}Overrides", __base__=_Overrides, __doc__=model.__doc__, **fields
    )


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types that a field may have."""
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


RecipeOverrides = overrides_of(Recipe)
