"""A function's equivariance and invariance: predicted, measured, and made.

Of any function of images, be it a formula or a model of Linen, NNX or Equinox:

    certify(fn, (1, 32, 32, 3), cyclic(4))     # predict, by a trace, where its grid breaks it
    check(fn, images, cyclic(4))               # measure by how much; of Linen's layers each
    symmetrize(fn, cyclic(4))                  # average it over the group, which makes it exact

>>> from jaxequi.groups.planar import cyclic
>>> certify(lambda x: x.mean((1, 2)), (1, 8, 8, 3), cyclic(4)).exact
True
>>> certify(lambda x: x[:, ::2].mean((1, 2)), (1, 8, 8, 3), cyclic(4)).exact
False
"""

import typing

from jaxequi import names
from jaxequi.probes.equivariance import measure as check
from jaxequi.probes.exactness import judge as certify
from jaxequi.probes.symmetry import symmetrize

__all__ = ["certify", "check", "symmetrize"]

if not typing.TYPE_CHECKING:  # a type checker would believe every name
    __getattr__, __dir__ = names.opened(__name__)
