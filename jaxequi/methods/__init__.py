"""Learning methods: each file has `make(...) -> Method`; its name is its registration."""

from jaxequi.methods._online import with_online_heads as with_online_heads
from jaxequi.methods._soft_equivariance import with_soft_equivariance as with_soft_equivariance
