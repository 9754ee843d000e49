"""Learning methods: each file has `make(...) -> Method`; its name is its registration."""

import typing

from jaxequi import names
from jaxequi.methods._online import with_online_heads as with_online_heads
from jaxequi.methods._soft_equivariance import with_soft_equivariance as with_soft_equivariance

if not typing.TYPE_CHECKING:  # a type checker would believe every name
    __getattr__, __dir__ = names.opened(__name__)
