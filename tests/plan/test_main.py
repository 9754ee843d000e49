"""The program: from a command line to a plan."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import simsiam
from jaxequi.plan import __main__ as plan
from jaxequi.plan import chips, inputs, planning, program, tables

SMOKE = "--config=configs/simsiam.py:simsiam,smoke"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def planned(capsys, *words):
    assert plan.main(["plan", "--json", "--how=estimate", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("nothing_compiles")
def test_an_estimate_compiles_nothing(capsys):
    found = planned(capsys, SMOKE, "--topology=v5e:2x2", "--price=2")
    [tpu] = found["plans"]
    [gpu] = planned(capsys, SMOKE, "--topology=h100:8", "--price=2", "--effects=none")["plans"]
    assert (tpu["topology"], tpu["chips"], tpu["devices"]) == ("v5e:2x2", 4, 4)
    assert (gpu["topology"], gpu["chips"]) == ("h100:8", 8)
    assert found["assumed"] == []
    for one in (tpu, gpu):
        assert one["fits"]
        assert one["how"] == "estimated"
        assert one["spare_bytes"] == one["capacity_bytes"] - one["memory_bytes"]
        assert one["largest_batch"] % one["devices"] == 0
        assert one["step_seconds"] == max(one["seconds"].values())
        assert one["examples_per_second"] == pytest.approx(8 / one["step_seconds"])
        assert one["chip_hours"] == pytest.approx(3 * one["step_seconds"] * one["chips"] / 3600)
        assert one["cost"] == 2 * one["chip_hours"]
        assert one["scaling"][0]["chips"] == 1
        assert one["advice"]
    # The same work on twice as many devices, and one gradient as large as the parameters.
    assert tpu["flops"] == 2 * gpu["flops"] > 0
    assert tpu["collective_bytes"] == gpu["collective_bytes"]
    assert set(tpu["effects"]) == {"how", "remat=True", "dtype=bfloat16", "fsdp=4"}
    remat, split = tpu["effects"]["remat=True"], tpu["effects"]["fsdp=4"]
    assert remat["memory_bytes"] <= tpu["memory_bytes"]
    assert split["memory_bytes"] < tpu["memory_bytes"]


@pytest.mark.usefixtures("nothing_compiles")
def test_what_the_compiler_takes_fits():
    step = planning.traced(inputs.job(simsiam.get_config("simsiam,smoke"), (), 4))

    def plan(part, how):
        part = chips.parse(part)
        over = dataclasses.replace(planning.estimated(step), memory=part.chip.memory + 2**20)
        return planning.plan(part, step, over, how)

    taken = plan("v5e:2x2", "compiled")
    assert taken["fits"]
    assert taken["largest_batch"] == 8
    told = "fits: 15.75 GiB of 15.75 GiB on a device, 1.00 MiB over with the program's code"
    assert told in tables.of_plan(taken)
    # of a GPU our count decides
    for part, how in (("v5e:2x2", "estimated"), ("h100:4", "compiled")):
        refused = plan(part, how)
        assert not refused["fits"]
        assert refused["largest_batch"] < 8
        assert "1.00 MiB too much" in tables.of_plan(refused)


def test_a_published_experiment_needs_no_data():
    spec = importlib.util.spec_from_file_location("configs.mae", "configs/mae.py")
    mae = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mae)
    config, assumed = inputs.prepared(mae.get_config("base,paper"), inputs.Data())
    assert len(assumed) == 2
    assert "1281167 images of 256x256 in 1000 classes" in assumed[0]
    assert "50000 images of 256x256 in 1000 classes" in assumed[1]
    job = inputs.job(config, (), 256)  # devices, none of which is here
    assert job.mesh.size == 256
    assert job.shapes()["views"].shape == (4096, 1, 224, 224, 3)
    assert job.total_steps == 800 * (1_281_167 // 4096)
    assert job.evaluations == []


def test_tables_say_it_in_words(capsys):
    words = [SMOKE, "--topology=v5e:1x1", "--how=estimate", "--price=2"]
    assert plan.main(["plan", *words]) == 0
    text = capsys.readouterr().out
    for word in (
        "would fit:",
        "largest batch",
        "examples/s",
        "chip-hours, costs",
        "v5e:16x16",
        "advice",
    ):
        assert word in text
    assert "remat=True" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5f:2x2"], "unknown chip of --topology 'v5f'. Did you mean 'v5"),
        (["--topology=v5e:2x2x2"], "torus of 2 axes"),
        (["--topology=v5e:4x4"], "batch_size=8 does not divide over 16 devices"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], "does not fit 4 device"),
        (["--topology=v5e:2x2", "--how=guess"], "There is: auto, compile, estimate"),
        (["--topology=v5e:2x2", "--effects=som"], "There is: compile, estimate, none"),
        (["--topology=v5e:2x2", "--price=-1"], "costs 0 or more"),
        (["--topology=h100:8", "--how=compile"], "JAX sees no h100:8"),
        ([], "say what to plan for"),
        (
            ["--topology=v5e:2x2", "--config.train.source={'name': 'folder', 'root': 'nowhere'}"],
            "To plan without it say what it is like",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_compiles")
def test_bad_input_is_refused(words, message, capsys):
    assert plan.main(["plan", SMOKE, *words]) == 2
    assert message in capsys.readouterr().err


def test_data_that_is_described(capsys):
    source = "--config.train.source={'name': 'folder', 'root': 'nowhere'}"
    data = ["--examples=800", "--classes=10", "--image_size=40"]
    words = [SMOKE, source, *data, "--topology=v5e:1x1", "--effects=none"]
    found = planned(capsys, *words, "--config.total_epochs=2")
    assert "800 images of 40x40 in 10 classes" in found["assumed"][0]
    assert found["plans"][0]["steps"] == 2 * 100


def test_a_program_is_compiled_for_a_slice_that_is_not_here():
    pytest.importorskip("libtpu", reason="the compiler for TPUs, of the `tpu` extra")
    part = chips.parse("v5e:2x2")
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=chips.devices(part))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*p)) for p in (("data",), ()))

    def step(w, x):
        return w - jax.grad(lambda w: jnp.square(x @ w).sum())(w)

    def lowered(batch):
        w = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=whole)
        x = jax.ShapeDtypeStruct((batch, 256), jnp.float32, sharding=rows)
        return jax.jit(step, donate_argnums=0, out_shardings=whole).lower(w, x)

    cost = program.cost(lowered(4096).compile())
    [reduce] = cost.collectives
    assert (reduce.kind, reduce.group) == ("all-reduce", 4)
    assert reduce.bytes == 256 * 512 * 4
    assert cost.flops == 2 * 2 * 1024 * 256 * 512
    assert cost.memory < part.chip.memory
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        lowered(2**27).compile()
    verdict = program.out_of_memory(str(refused.value))
    assert verdict.capacity == part.chip.memory
    assert verdict.used > verdict.capacity
    with pytest.raises(ValueError, match="no such slice"):
        chips.devices(chips.parse("v5e:3x5"))
