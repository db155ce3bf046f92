"""The column types of the tables, so that each table's file says only what is its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import DateTime, Text, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field


def id_column(*, primary_key: bool = False, foreign_key: str | None = None, unique: bool = False) -> Any:
    """Return a UUID, in Python the canonical text of it."""
    if foreign_key is None:
        return Field(sa_type=Uuid(as_uuid=False), primary_key=primary_key, unique=unique)
    return Field(sa_type=Uuid(as_uuid=False), primary_key=primary_key, foreign_key=foreign_key, unique=unique)


def text_column(*, primary_key: bool = False, unique: bool = False) -> Any:
    """Return text that must be there."""
    return Field(sa_type=Text, primary_key=primary_key, unique=unique)


def optional_text(*, name: str | None = None) -> Any:
    """Return text that may be missing; `name` where the column is called what SQLModel keeps for itself."""
    return Field(default=None, sa_type=Text, nullable=True, sa_column_kwargs={} if name is None else {"name": name})


def json_column() -> Any:
    """Return a JSON document that must be there."""
    return Field(sa_type=JSONB, nullable=False)


def optional_json() -> Any:
    """Return a JSON document that may be missing."""
    return Field(default=None, sa_type=JSONB(none_as_null=True), nullable=True)


def created_column() -> Any:
    """Return a time that the database fills in."""
    return Field(default=None, sa_type=DateTime(timezone=True), nullable=False, sa_column_kwargs={"server_default": func.now()})


def time_column(*, primary_key: bool = False) -> Any:
    """Return a time that must be given."""
    return Field(sa_type=DateTime(timezone=True), primary_key=primary_key, nullable=False)


def optional_time() -> Any:
    """Return a time that may be missing."""
    return Field(default=None, sa_type=DateTime(timezone=True), nullable=True)
