"""A run that an earlier version wrote: its network loads with its numbers, and it goes on.

saved_run.zip is SIE on tiny scenes (`config` below, orbax-checkpoint 0.12.8, jax 0.10.2), stopped
after two of its three steps. The numbers are of the run that was not stopped.
"""

import json
import shutil

import numpy as np
import pytest

from configs import sie
from jaxequi import experiment
from jaxequi.experiment import trained
from jaxequi.train import log, loop, workdir

# Of the checkpoint of step 2: the stem's first row of taps, mean and variance of its norm, and what
# the network says of a ramp.
STEM = [
    [0.16585441, 0.47501212, -0.14234285],
    [-0.27991217, -0.23806415, 1.072632],
    [1.0921842, -1.0335836, -0.08094806],
]
STATISTICS = [0.16461438, 3.4172564]
REPRESENTATION = [0.21409199, 0.021475919, 0, 0, 0.09580644, 0, 0.026973195, 0]
THIRD_STEP = {
    "loss": 15.09987,
    "loss/covariance": 0.1291867,
    "loss/equivariance": 0.05946041,
    "loss/invariance": 0.3482013,
    "loss/prediction_variance": 0.4660011,
    "loss/variance": 0.6561091,
    "gradient_norm": 33.88036,
    "learning_rate": 0.002,
}


@pytest.fixture
def saved_run(tmp_path):
    shutil.unpack_archive(__file__.replace("test_saved_run.py", "saved_run.zip"), tmp_path)
    return tmp_path


def config():
    small = sie.get_config("sie,smoke")
    small.backbone.width = 1
    small.method.equi = 4
    small.method.projector = "4-4-4"
    small.online.features = ()
    small.eval_every_steps = 0
    small.mesh.data = 1
    return small


def test_its_network_has_its_numbers(saved_run):
    network = trained.load(saved_run)
    assert network.step == 2
    assert network.config.to_dict()["backbone"] == config().to_dict()["backbone"]
    stem = network.params["backbone"]["conv1"]["kernel"]
    assert stem.dtype == np.float32
    np.testing.assert_array_equal(stem[0, :, :, 0], np.array(STEM, np.float32))
    statistics = network.extra["batch_stats"]["backbone"]["bn1"]
    np.testing.assert_array_equal(
        [statistics["mean"][0], statistics["var"][0]], np.array(STATISTICS, np.float32)
    )
    views = np.linspace(-1, 1, 16 * 16 * 3, dtype=np.float32).reshape(1, 1, 16, 16, 3)
    features = network.encode(network.params, network.extra, views)
    np.testing.assert_allclose(features["representation"][0, 0], REPRESENTATION, rtol=1e-5)


def test_it_goes_on_as_if_it_had_not_been_stopped(saved_run):
    job = experiment.build(config())
    # Fields that a later version adds are no difference between the two runs.
    (saved_run / workdir.CONFIG_FILE).write_text(json.dumps(job.config))
    assert loop.run(job, saved_run) == loop.FINISHED
    rows = log.read_metrics(saved_run)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for name, value in THIRD_STEP.items():
        assert rows[-1][name] == pytest.approx(value, rel=1e-4), name
