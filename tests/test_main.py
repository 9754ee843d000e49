"""The command line, as a user meets it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxequi import cli, main
from jaxequi.experiment import networks
from tests.flags import QUICK

ROOT = pathlib.Path(__file__).parent.parent


def command(*arguments):
    return [sys.executable, "-m", "jaxequi.main", *map(str, arguments)]


def call(*arguments):
    env = {**os.environ, "XLA_FLAGS": QUICK}  # one device, as at home
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )


def test_bad_input_is_one_clean_message():
    done = call("--config=configs/sie.py:smoke", "--config.method.name=sieve")
    assert done.returncode == cli.BAD_INPUT
    [told] = done.stderr.splitlines()
    assert "Did you mean 'sie'" in told


SMOKE = f"--config={ROOT}/configs/sie.py:smoke"
LINEAR = f"--config={ROOT}/configs/linear.py:smoke"
NOT_EXACT = f"--config={ROOT}/configs/rotmnist.py:approximate27,smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --config"),
        (("--config=configs/nothing.py",), "no config file 'configs/nothing.py'"),
        ((f"--config={ROOT}/configs/sie.py:vicrag",), "Did you mean 'vicreg'"),
        ((SMOKE, "--config.batchsize=4"), '"batch_size"'),
        ((SMOKE, "--config.val.source.root=a"), "argument of data.sources 'scenes' in this config"),
        ((SMOKE, "--config.backbone.widht=8"), "'widht'. Did you mean 'width'?"),
        ((SMOKE, "--config.method.temperature=1.0"), "argument of methods 'sie' in this config"),
        ((SMOKE, "--config.optimizer.momentun=0.9"), "momentun"),
        ((SMOKE, "--config.train.sourc.name=a"), "unknown config field 'sourc'"),
        ((SMOKE, "--config.backbone.widht=8", "--config.batchsize=4"), '"batch_size"'),
        ((f"--config={ROOT}/configs/linear.py",), "--config.init_from=FOLDER_OF_A_RUN"),
        ((SMOKE, "--workdir=/dev/null/x"), "cannot be used"),
        ((SMOKE, "extra"), "not 1 arguments ('extra')"),
        ((NOT_EXACT, "--config.check=error"), "refuses a network that is not exact"),
        ((SMOKE, "--config.total_steps=abc"), "config.total_steps=abc"),
        ((SMOKE, "--config.evals.knn.k=0"), "evals.knn.k=0: between 1 and the 20"),
        ((SMOKE, "--config.val.eval_examples=0"), "val.eval_examples=0: it must be at least 1"),
        ((SMOKE, "--config.mesh.data=-2"), "mesh data=-2, fsdp=1 does not fit"),
        ((SMOKE, "--config.mesh.fsdp=1000"), "fsdp=1000 does not fit"),
        ((SMOKE, "--config.train.num_views=51"), "stores 50 of an example"),
        ((LINEAR, "--config.train.source=scenes("), "cannot read 'scenes('"),
        ((LINEAR, "--config.train.source=scenez()"), "Did you mean 'scenes'"),
        ((LINEAR, "--config.train.source="), "unknown name in data.sources ''"),
        ((LINEAR, "--config.train.source=scenes()|scenes()"), "a source is one"),
        ((LINEAR, "--config.init_encoder=targt"), "encoder 'targt'"),
        ((LINEAR, "--config.init_step=77"), "no checkpoint of step 77"),
        ((LINEAR, "--config.fresh=["), "fresh='[' is no regular expression"),
        ((SMOKE, "--workdir=file"), "file is no folder"),
        ((SMOKE, "--workdir=file/below"), "file is no folder"),
        ((SMOKE, "--workdir=link"), "link is no folder"),
        ((SMOKE, "--workdir=link/below"), "link is no folder"),
    ],
    ids=lambda given: given[-1].lstrip("-") if isinstance(given, tuple) and given else "",
)
def test_a_refusal_leaves_nothing(arguments, message, sie_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    start = (f"--config.init_from={sie_run}",) if LINEAR in arguments else ()
    argv = ["main", *arguments, *start]
    assert main.main(argv) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith("jaxequi: ")
    assert message in told
    assert "Traceback" not in told
    assert sorted(child.name for child in tmp_path.iterdir()) == ["file", "link"]


def test_an_argument_that_the_config_does_not_list_reaches_what_it_names():
    argv = ["--config.backbone.name=octic_vit", "--config.backbone.group=d1"]
    argv += ["--config.backbone.invariant=true", "--config.backbone.symmetric=1"]
    argv = ["main", f"--config={ROOT}/configs/mae.py:smoke", *argv]
    cli.arguments(argv, main.FLAGS, [], main.__doc__)
    config, overridden, _ = cli.config(main.FLAGS)
    networks.follow_names(config, overridden)
    assert {"backbone.group", "backbone.invariant", "backbone.symmetric"} <= {*overridden}
    backbone = networks.make_backbone(config)
    assert backbone.group.name == "d1"
    assert (backbone.symmetric, backbone.invariant) == (1, True)


def test_a_machine_that_is_not_there(tmp_path):
    env = {**os.environ, "JAX_PLATFORMS": "nothing", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(SMOKE), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == cli.BAD_INPUT, done.stderr
    assert "JAX_PLATFORMS='nothing'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# One layer of attention, which is compiled sooner than a ResNet.
TINY = ("--config=configs/mae.py:smoke", "--config.backbone.depth=1")


def wait_for_steps(metrics, *running):
    """Return when three steps are logged; fail if a process ends before that."""
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        for process in running:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupted_and_started_again(tmp_path):
    arguments = (
        *TINY,
        "--config.total_steps=400",
        "--config.eval_every_steps=0",
        "--config.save_every_steps=1000",
        f"--workdir={tmp_path / 'run'}",
    )
    running = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK},  # the program of the next call, compiled once
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for_steps(metrics, running)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=300)
    assert running.returncode == 85, output
    assert "interrupted" in output
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 401))
    assert (tmp_path / "run" / "report.html").exists()
    again = call(*arguments)
    assert again.returncode == 0
    assert "finished" in again.stdout


def start_two(*arguments):
    """Start the same command as two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    cluster["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=2"
    return [
        subprocess.Popen(
            command(*arguments),
            cwd=ROOT,
            env={**os.environ, **cluster, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]


def test_two_processes_train_as_one_and_stop_together(tmp_path):
    arguments = (
        *TINY,
        "--config.eval_every_steps=0",
        "--config.save_every_steps=1000",
    )
    whole = (*arguments, "--config.total_steps=300", f"--workdir={tmp_path / 'two'}")
    metrics = tmp_path / "two" / "metrics.jsonl"
    running = start_two(*whole)
    wait_for_steps(metrics, *running)
    running[1].send_signal(signal.SIGTERM)  # a scheduler may tell one host alone
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [85, 85], outputs
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    done = call(*arguments, "--config.total_steps=2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    alone = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for two, one in zip(lines[:2], alone, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    done = call(*whole)  # one process goes on where two were
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 301))
