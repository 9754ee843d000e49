"""Whole backbones."""

import typing

from jaxequi import names

if not typing.TYPE_CHECKING:  # a type checker would believe every name
    __getattr__, __dir__ = names.opened(__name__)
