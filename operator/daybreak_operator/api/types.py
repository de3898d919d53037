"""Field types that several parts of the spec share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from daybreak_operator.api.duration import DURATION_PATTERN, INTERVAL_PATTERN

Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=32)]
Interval = Annotated[str, Field(pattern=INTERVAL_PATTERN, max_length=32)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Money = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=16)]
