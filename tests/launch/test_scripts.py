"""The launch scripts, with programs in the place of sbatch, gcloud and kubectl that keep what they
were told."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), *sorted(LAUNCH.glob("*/*.sh"))]
# Of the extra `dev`; an environment that is not entered has it beside its Python.
SHELLCHECK = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")
RUN = ("--config=configs/sie.py:sie,paper", "--workdir=/disk/a run", "--config.x=$(touch oops) 'q'")
# Says what it was called with; answers by the next line of `answers`: an exit code and a text.
STUB = """\
#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
text = "" if sys.stdin.isatty() else sys.stdin.read()
with (folder / "calls").open("a") as file:
    file.write(json.dumps([argv, text]) + "\\n")
answers = json.loads((folder / "answers").read_text())
for number, (match, code, said) in enumerate(answers):
    if match in " ".join(argv):
        (folder / "answers").write_text(json.dumps(answers[:number] + answers[number + 1 :]))
        print(said)
        sys.exit(code)
"""


@pytest.fixture
def call(tmp_path):
    """Run a script with stubs on the path; returns the process and the calls that it made."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "gcloud", "kubectl"):
        (programs / name).write_text(STUB.format(python=sys.executable, folder=str(tmp_path)))
        (programs / name).chmod(0o755)

    def run(script, *arguments, answers=()):
        (tmp_path / "answers").write_text(json.dumps(answers))
        (tmp_path / "calls").write_text("")
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "POLL_SECONDS": "0",
        }
        done = subprocess.run(
            [str(LAUNCH / script), *arguments],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,  # many short programs, on a busy machine
        )
        lines = (tmp_path / "calls").read_text().splitlines()
        assert not list(tmp_path.rglob("oops"))
        return done, [json.loads(line) for line in lines]

    return run


def words(shell):
    """What a shell makes of a line."""
    python = "import json, sys; print(json.dumps(sys.argv[1:]))"
    line = f"{sys.executable} -c {json.dumps(python)} {shell}"
    return json.loads(subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_reads_it(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run(
        [SHELLCHECK, "-x", script], cwd=LAUNCH.parent, capture_output=True, text=True
    )
    assert done.stdout == ""


SLURM = ("--partition=gpu", "--nodes=2", "--gpus-per-node=8")


def test_slurm_submits_a_job_that_queues_itself_again(call, tmp_path):
    done, [(argv, job)] = call("slurm.sh", *SLURM, "--", *RUN)
    assert done.returncode == 0
    assert argv[0] == "sbatch"
    assert set(argv[1:]) >= {*SLURM, "--ntasks-per-node=8", "--signal=USR1@60", "--requeue"}
    for name, body in {
        "srun": 'printf "%s\\n" "$@" > words; exit "$CODE"',
        "scontrol": 'echo "$@" > requeued',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for code, requeued in ((0, False), (1, False), (85, True)):
        env = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "CODE": str(code),
            "SLURM_JOB_ID": "7",
        }
        assert subprocess.run(["bash"], input=job, text=True, env=env).returncode == code
        assert (tmp_path / "requeued").exists() == requeued
    assert (tmp_path / "words").read_text().splitlines()[-len(RUN) :] == list(RUN)
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


TPU = ("--name=n", "--zone=z", "--type=v5litepod-16", "--bucket=b c", "--to=here")


def test_tpu_rents_trains_fetches_and_gives_back(call, tmp_path):
    answers = [
        ("describe", 1, ""),  # not there
        ("describe", 0, "WAITING_FOR_RESOURCES"),
        ("describe", 0, "ACTIVE"),
        ("jaxequi.main", 0, "exit code 0\nexit code 85\nexit code 0"),
        ("describe", 0, "SUSPENDED"),
        ("describe", 0, "ACTIVE"),
        ("jaxequi.main", 0, "exit code 0\nexit code 0"),
    ]
    done, calls = call("tpu.sh", *TPU, "--spot", "--", *RUN, answers=answers)
    assert done.returncode == 0, done.stderr
    did = [" ".join(argv[3:6] if argv[5] == "n" else argv[3:5]) for argv, _ in calls]
    round_of = ["tpu-vm scp", "tpu-vm ssh n", "tpu-vm ssh n"]
    asked, made, gone = (f"queued-resources {verb} n" for verb in ("describe", "create", "delete"))
    assert did == [
        *(asked, made, asked, asked, *round_of),
        *(asked, gone, made, asked, *round_of),
        *("tpu-vm scp", gone),
    ]
    assert {"--accelerator-type=v5litepod-16", "--spot", "--zone=z"} <= set(calls[1][0])
    [command] = [word for word in calls[6][0] if word.startswith("--command=")]
    remote = command.removeprefix("--command=").split(" -m jaxequi.main ")[1].split("; echo")[0]
    assert words(remote) == list(RUN)
    assert "n:/disk/a run" in calls[-2][0]
    answers = [("describe", 0, "ACTIVE"), ("jaxequi.main", 0, "exit code 0")]
    _, calls = call("tpu.sh", *TPU, "--", "--workdir=runs/x", answers=answers)
    assert "n:jaxequi/runs/x" in calls[-2][0]  # where the program starts


def test_slurm_starts_a_process_for_each_gpu_of_a_kind(call):
    _, [(argv, _)] = call("slurm.sh", "--gpus-per-node=h100:4", "--", *RUN)
    assert {"--gpus-per-node=h100:4", "--ntasks-per-node=4"} <= set(argv)


def test_tpu_ends_with_a_final_code_and_gives_back(call):
    answers = [("describe", 0, "ACTIVE"), ("jaxequi.main", 1, "exit code 2\nexit code 2")]
    done, calls = call("tpu.sh", *TPU, "--", *RUN, answers=answers)
    assert done.returncode == 2
    assert calls[-1][0][3:6] == ["queued-resources", "delete", "n"]
    answers = [("describe", 0, "ACTIVE"), ("jaxequi.main", 1, "no host answered"), *answers[:1]]
    done, calls = call("tpu.sh", *TPU, "--keep", "--", *RUN, answers=answers)
    assert done.returncode == 1
    assert "delete" not in calls[-1][0]


def job_of(text):
    jobset = yaml.safe_load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == ["python", "-m", "jaxequi.main"]
    assert container["args"][:2] == list(RUN[:2])
    assert container["args"][2] == RUN[2].replace("$(", "$$(")  # which Kubernetes reads as "$("
    [disrupted, final] = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count"
    assert (final["action"], final["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert final["onExitCodes"]["values"] == [85]
    assert job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    return jobset, job, pod, container


def test_gke_submits_a_slice_and_nodes(call):
    tpu = ("--name=a-run", "--image=i:1", "--tpu=tpu-v5-lite-podslice", "--topology=4x8")
    done, [(argv, text)] = call("gke/submit.sh", *tpu, "--", *RUN)
    assert (done.returncode, argv) == (0, ["kubectl", "create", "-f", "-"])
    jobset, job, pod, container = job_of(text)
    assert jobset["metadata"]["name"] == "a-run"
    assert job["parallelism"] == job["completions"] == 8  # 32 chips, 4 a host
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    gpu = ("--name=a", "--image=i", "--gpu=nvidia-h100-80gb", "--nodes=2", "--gpus-per-node=8")
    done, [(_, text)] = call("gke/submit.sh", *gpu, "--", *RUN)
    jobset, job, pod, container = job_of(text)
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"] == "a-train-0-0.a:1234"
    assert env["JAX_NUM_PROCESSES"] == "2"
    assert job["completions"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_sky_goes_on_from_an_interruption():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [85]
    assert set(task["envs"]) == {"BUCKET", "ARGUMENTS"}
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True).returncode == 0


def test_local_installs_for_the_accelerator_that_is_here(call, tmp_path):
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/bash\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    venv = f"--venv={tmp_path}/a venv"
    done, _ = call("local.sh", "--dry-run", venv, "--", *RUN)
    made, installed, run = done.stdout.splitlines()
    python = f"{tmp_path}/a venv/bin/python"
    assert words(made) == ["python3", "-m", "venv", f"{tmp_path}/a venv"]
    assert words(installed) == [python, "-m", "pip", "install", "--quiet", "-e", ".[cuda]"]
    assert words(run) == ["exec", python, "-m", "jaxequi.main", *RUN]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("slurm.sh", SLURM), ("tpu.sh", TPU), ("gke/submit.sh", ("--name=a", "--image=i", "--gpu=x"))],
)
def test_a_dry_run_tells_all_and_does_nothing(call, tmp_path, script, arguments):
    done, calls = call(script, "--dry-run", *arguments, "--", *RUN)
    assert done.returncode == 0
    assert calls == []
    assert "jaxequi.main" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "bin", "calls"]
    for line in done.stdout.splitlines():
        if line.startswith("gcloud"):
            assert words(line)[:3] == ["gcloud", "compute", "tpus"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("slurm.sh", SLURM, "no -- before"),
        ("slurm.sh", (*SLURM, "--", "--config=c"), "give --workdir"),
        ("slurm.sh", ("--gpus-per-task=1", "--", *RUN), "hides a node's GPUs"),
        ("slurm.sh", ("--signal=TERM@9", "--", *RUN), "set by this script"),
        ("slurm.sh", ("-p", "gpu", "--", *RUN), "written --NAME=VALUE"),
        ("tpu.sh", (*TPU[1:], "--", *RUN), "give --name="),
        ("tpu.sh", (*TPU, "--typ=v5e", "--", *RUN), "unknown flag '--typ=v5e'"),
        ("local.sh", ("--env=x", "--", *RUN), "there are --venv"),
        ("gke/submit.sh", ("--name=a", "--image=i", "--", *RUN), "either --tpu= with"),
        (
            "gke/submit.sh",
            ("--name=a", "--image=i", "--tpu=x", "--topology=4x4", "--chips=0", "--", *RUN),
            "chips=0: a number from 1 on",
        ),
        ("gke/submit.sh", ("--name=A_b", "--image=i", "--gpu=x", "--", *RUN), "a-z, 0-9 and -"),
        (
            "gke/submit.sh",
            ("--name=a", "--image=i", "--tpu=x", "--topology=4by4", "--", *RUN),
            "write it like 4x4",
        ),
    ],
)
def test_bad_input_is_refused(call, script, arguments, message):
    done, calls = call(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert calls == []
