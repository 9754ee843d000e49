"""From a config to plain objects. A run is built from its config here and nowhere else."""

from jaxequi.experiment.job import build as build
from jaxequi.experiment.networks import follow_names as follow_names
from jaxequi.experiment.networks import make_backbone as make_backbone
from jaxequi.experiment.networks import make_method as make_method
from jaxequi.experiment.sets import make_set as make_set
from jaxequi.experiment.sets import make_source as make_source
