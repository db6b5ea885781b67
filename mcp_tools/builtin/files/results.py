"""The base of what the file tools return as data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """A result with a schema. It is built on first use: this module is on the server's start path."""

    model_config = ConfigDict(defer_build=True)
