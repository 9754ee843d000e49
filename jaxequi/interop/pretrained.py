"""Take a network away, and bring it back: python -m jaxequi.interop.pretrained RUN --output=DIR

    RUN --output=DIR                       # the network of a run
    RUN --output=DIR --backbone            # its backbone alone
    RUN --output=DIR --push=OWNER/NAME     # and publish it; needs huggingface_hub
    DIR --workdir=RUN                      # make a run of it, for --config.init_from=RUN

  --output DIR     the folder to be made
  --backbone       leave the heads out
  --step N         which checkpoint (default: the newest)
  --license ID     of the weights, as the hub writes it (default: apache-2.0)
  --push ID        the repository on the Hugging Face hub; made if it is not there
  --private        make it private
  --workdir RUN    of a folder that holds a network: the run to be made

DIR is laid out as on the hub: `model.safetensors`, `config.json` with the fields of timm, and the
card `README.md`. A network that timm has, too, a ResNet of torchvision's or a vision transformer,
has its arrays under timm's names, and `timm.create_model("local-dir:DIR", pretrained=True)` loads
it; all others have ours. Heads that learned beside the method, queues and target networks stay
behind.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from flax import traverse_util

from jaxequi import augment, cli, pipes
from jaxequi.augment import statistics
from jaxequi.data import transforms
from jaxequi.errors import Refusal
from jaxequi.experiment import trained
from jaxequi.interop import files, formats, hub, networks
from jaxequi.models import torchvision_resnet, vit
from jaxequi.train import log, provenance
from jaxequi.train.workdir import EXAMPLES_FILE
from jaxequi.types import OWN, PyTree

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
OURS = "jaxequi"  # the section of config.json that is ours, and the names of arrays
ONLINE = "online"  # in params: the heads beside the method

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "The folder to be made.", FLAGS)
_BACKBONE = flags.DEFINE_bool("backbone", False, "The backbone alone.", FLAGS)
_STEP = flags.DEFINE_integer(
    "step", None, "Which checkpoint; the newest by default.", flag_values=FLAGS
)
_LICENSE = flags.DEFINE_string("license", "apache-2.0", "Of the weights.", FLAGS)
_PUSH = flags.DEFINE_string("push", None, "Repository on the hub, OWNER/NAME.", FLAGS)
_PRIVATE = flags.DEFINE_bool("private", False, "Make that repository private.", FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run to be made.", FLAGS)


def save_pretrained(
    run: str | pathlib.Path,
    directory: str | pathlib.Path,
    *,
    step: int | None = None,
    backbone_alone: bool = False,
    license: str = "apache-2.0",
) -> pathlib.Path:
    """Write the network of a run's checkpoint into a new folder, in the layout of the hub.

    Args:
      run: its folder.
      directory: to be made.
      step: of the checkpoint; the newest by default.
      backbone_alone: leave the method's heads out.
      license: of the weights, as the hub writes it.

    Returns:
      `directory`.

    Raises:
      ValueError: no such checkpoint, one without a backbone, or a folder that is there already.
    """
    run, directory = pathlib.Path(run), pathlib.Path(directory)
    if directory.exists():
        raise Refusal(f"{directory} is there already; give a folder that is to be made")
    step, config, variables = networks.load(run, step, backbone_alone)
    if "backbone" in variables["params"]:  # else heads, whose frozen network is the method's own
        variables = {name: tree for name, tree in variables.items() if name != OWN}
    variables["params"] = {k: v for k, v in variables["params"].items() if k != ONLINE}
    as_timm = timm_model(config, variables)
    if as_timm:
        name = formats.of_run(config)
        written = formats.find(name).write(config.copy_and_resolve_references(), variables, 0)
        state, _ = files.state_dict(written.content)
    else:
        name = OURS
        state = traverse_util.flatten_dict(variables, sep="/")
    state = {key: np.asarray(array) for key, array in state.items()}
    with files.appearing(directory) as part:
        part.mkdir(parents=True)
        files.write_safetensors(part / WEIGHTS, state, {"format": "pt" if as_timm else "flax"})
        about = described(run, config, variables, as_timm)
        about["pretrained_cfg"]["license"] = license
        about[OURS] = {
            "version": importlib.metadata.version("jaxequi"),
            "names": name,
            "config": json.loads(config.to_json_best_effort()),
            "seed": config.get("seed"),
            "step": step,
            "metrics": metrics(run, step, config),
            **{k: v for k, v in provenance.read(run).items() if k in ("command", "commit", "date")},
            "weights": {"file": WEIGHTS, **fingerprint(part / WEIGHTS)},
        }
        (part / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
        (part / CARD).write_text(card(directory.absolute().name, about))
    return directory


def load_pretrained(directory: str | pathlib.Path) -> trained.Trained:
    """Load what `save_pretrained` wrote, of which no byte of the weights has changed since.

    Raises:
      ValueError: a file that is missing, cannot be read or is not the one that was written, by its
        name; or arrays that are not those of the config's network.
    """
    step, config, variables = _read(pathlib.Path(directory))
    extra = dict(variables)
    return trained.describe(pathlib.Path(directory), step, config, extra.pop("params"), extra)


def _read(directory: pathlib.Path) -> tuple[int, ml_collections.ConfigDict, PyTree]:
    """Step, config and variables of a folder, as `networks.load` gives those of a run."""
    file = directory / CONFIG
    try:
        about = json.loads(file.read_text())[OURS]
        config = ml_collections.ConfigDict(about["config"])
        step, name = int(about["step"]), about["names"]
        wanted = about["weights"]["sha256"]
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"{file} is no config of a network that was taken away with save_pretrained: "
            f"{type(error).__name__} {error}"
        ) from error
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise Refusal(f"{weights} is missing; {file} describes it")
    found = fingerprint(weights)["sha256"]
    if found != wanted:
        raise Refusal(
            f"{weights} is another file than the one that {CONFIG} describes: its sha256 is "
            f"{found}, and was {wanted}; fetch it again"
        )
    state, _ = files.read_safetensors(weights)
    if name == OURS:
        variables = traverse_util.unflatten_dict(state, sep="/")
    else:
        read = config.copy_and_resolve_references()
        if read.method is None:  # what a file without a classifier is read as
            read.method = {"name": "supervised", "num_classes": 1}
        variables = formats.find(name).read(state, read).variables
    return step, config, variables


def push_to_hub(directory: str | pathlib.Path, repository: str, *, private: bool = False) -> str:
    """Publish the folder that `save_pretrained` made; the repository is made if it is not there.

    Args:
      directory: the folder, whole and unchanged.
      repository: OWNER/NAME on the Hugging Face hub.
      private: make a new repository private.

    Returns:
      Where it is.

    Raises:
      ValueError: see `load_pretrained` and `hub.upload`.
    """
    return hub.upload(load_pretrained(directory).run, FILES, repository, private)


def fingerprint(file: pathlib.Path) -> dict[str, Any]:
    """The sha256 of a file, and its size in bytes."""
    with file.open("rb") as opened:
        return {
            "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
            "bytes": file.stat().st_size,
        }


def metrics(run: pathlib.Path, step: int, config: ml_collections.ConfigDict) -> dict[str, float]:
    """What a run logged at a step: of its evaluations, or else of the training step."""
    rows = [row for row in log.read_metrics(run) if row["step"] == step]
    last = {name: value for row in rows for name, value in row.items() if name != "step"}
    sets = {name for name, field in config.items() if hasattr(field, "keys") and "source" in field}
    evals = config.get("evals") or {}
    judged = {}
    for name, value in last.items():
        subject, evaluation, metric = [*name.split("/"), "", ""][:3]
        options = evals.get(evaluation, {})  # which are logged, too
        if subject in sets and evaluation in evals and metric not in options:
            judged[name] = value
    return judged or last


def timm_model(config: ml_collections.ConfigDict, variables: PyTree) -> dict[str, Any]:
    """Describe a network as timm makes it: `architecture`, `model_args` and so on.

    huggingface/pytorch-image-models, `timm/models/{resnet, vision_transformer}.py`.

    Returns:
      Fields of timm's config.json; none for a network that timm does not have.
    """
    if {*variables["params"]} not in ({"backbone"}, {"backbone", "classifier"}):
        return {}
    module: Any = networks.module(config)
    if type(module) is vit.ViT:  # and none of those made of it, such as `octic_vit`
        return _timm_vit(module, shown(config))
    architecture = config.backbone.get("architecture", "resnet50")
    if config.backbone.name != "torchvision_resnet" or config.norm.epsilon != 1e-5:
        return {}
    plain = torchvision_resnet.NETWORKS[architecture]()
    if any(module.dilate) or any(getattr(module, n) != getattr(plain, n) for n in _OF_A_RESNET):
        return {}
    names = {"first_conv": "conv1", "classifier": "fc"}
    return {"architecture": architecture, "global_pool": "avg", "model_args": {}, **names}


_OF_A_RESNET = ("widths", "width", "width_per_group", "stem")


def _timm_vit(module: vit.ViT, seen: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a vision transformer: the size of that name, and where this one differs."""
    if "input_size" not in seen:
        return {}
    size = vit.Size(module.patch, module.width, module.depth, module.heads)
    name = next((name for name, known in vit.SIZES.items() if known == size), "tiny")
    known, theirs = vit.SIZES[name], ("patch_size", "embed_dim", "depth", "num_heads")
    args: dict[str, Any] = {
        k: mine for k, mine, its in zip(theirs, size, known, strict=True) if mine != its
    }
    if module.mlp_ratio != 4:
        args["mlp_ratio"] = module.mlp_ratio
    if seen["input_size"][1:] != [224, 224]:
        args["img_size"] = seen["input_size"][1:]
    pool = "token" if module.pool == "token" else "avg"
    if pool == "avg":
        args["global_pool"] = pool
    architecture = f"vit_{name}_patch{known.patch}_224"
    names = {"first_conv": "patch_embed.proj", "classifier": "head"}
    return {"architecture": architecture, "global_pool": pool, "model_args": args, **names}


def described(
    run: pathlib.Path, config: ml_collections.ConfigDict, variables: PyTree, as_timm: dict[str, Any]
) -> dict[str, Any]:
    """The fields that timm's config.json has, `timm/models/_hub.py` and `_pretrained.py`."""
    fields = dict(as_timm)
    classifier = variables["params"].get("classifier")
    classes = classifier["kernel"].shape[-1] if classifier else 0
    names = {name: fields.pop(name, None) for name in ("first_conv", "classifier")}
    if not classes:
        names["classifier"] = None
    backbone: Any = networks.module(config)
    architecture = config.backbone.get("architecture", config.backbone.name)
    seen = {**_stored(run), **shown(config)}
    labels = seen.pop("label_names", None)
    return {
        "architecture": architecture,
        **{name: value for name, value in fields.items() if name != "model_args"},
        "num_classes": classes,
        "num_features": int(backbone.features) if hasattr(backbone, "features") else None,
        "pretrained_cfg": {
            "custom_load": False,
            **seen,
            "fixed_input_size": isinstance(backbone, vit.ViT),
            "num_classes": classes,
            "pool_size": None,
            **names,
        },
        **({"label_names": labels} if labels and len(labels) == classes else {}),
        **({"model_args": fields["model_args"]} if fields.get("model_args") else {}),
    }


def shown(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """How `val` shows images, in timm's words, as far as its pipes say it."""
    val = config.get("val") or {}
    views, photometry = val.get("views"), val.get("augment")
    if not views or not photometry:
        return {}
    fields: dict[str, Any] = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    for name, given in _steps(views[0], transforms.OPS):
        size: Any = given.get("size")
        if name == "resize":
            fields["interpolation"] = given["filter"]
            if isinstance(size, int):
                fields["shorter"] = size
            else:  # whatever its aspect was
                fields |= {"input_size": [3, *size], "crop_mode": "squash"}
        elif name == "center_crop":
            sides = [size, size] if isinstance(size, int) else [*size]
            fields["input_size"] = [3, *sides]
            fields["crop_pct"] = round(min(sides) / fields.get("shorter", min(sides)), 6)
    shorter = fields.pop("shorter", None)
    if shorter and "input_size" not in fields:
        fields["input_size"] = [3, shorter, shorter]
    [given] = [given for name, given in _steps(photometry[0], augment.OPS) if name == "normalise"]
    mean, std = statistics.numbers(**given)
    return {**fields, "mean": [*mean], "std": [*std]}


def _steps(pipe: str, ops: Mapping[str, Callable[..., Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The names of a pipe's ops with their arguments, defaults among them."""

    def told(name: str, make: Callable[..., Any]) -> Callable[..., tuple[str, dict[str, Any]]]:
        @functools.wraps(make)
        def bound(*args: Any, **options: Any) -> tuple[str, dict[str, Any]]:
            call = inspect.signature(make).bind(*args, **options)
            call.apply_defaults()
            return name, dict(call.arguments)

        return bound

    return pipes.parse(pipe, {name: told(name, make) for name, make in ops.items()}, "op")


def _stored(run: pathlib.Path) -> dict[str, Any]:
    """What the first batch of a run says: the size of its images, the names of its classes."""
    file = run / EXAMPLES_FILE
    if not file.exists():
        return {}
    with np.load(file) as arrays:
        found: dict[str, Any] = {}
        if "class_names" in arrays:
            found["label_names"] = [str(name) for name in arrays["class_names"]]
        if "views" in arrays:
            found["input_size"] = [3, *map(int, arrays["views"].shape[-3:-1])]
        return found


def card(name: str, about: Mapping[str, Any]) -> str:
    """Write the model card: YAML that the hub reads, and what a person wants to know."""
    ours, config = about[OURS], about[OURS]["config"]
    as_timm = ours["names"] != OURS
    source = ((config.get("train") or {}).get("source") or {}).get("name")
    tags = ["jax", "flax", OURS, *(["timm"] if as_timm else [])]
    task = "image-classification" if about["num_classes"] else "image-feature-extraction"
    head = {
        "license": about["pretrained_cfg"]["license"],
        "library_name": OURS,
        "pipeline_tag": task,
        "tags": tags,
        **({"datasets": [source]} if source else {}),
        "metrics": sorted({(name.split("/")[2:] or [name])[0] for name in ours["metrics"]}),
    }
    method = (config.get("method") or {}).get("name", "a backbone alone")
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {name}", "", f"{about['architecture']}, {method}, of step {ours['step']}."]
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [f"| {key} | {value:.4g} |" for key, value in ours["metrics"].items()]
    lines += ["", "```python", "import jaxequi", ""]
    lines += [f'network = jaxequi.load_pretrained("{name}")']
    lines += ["network.encode(network.params, network.extra, views)  # f32[B, V, H, W, 3]", "```"]
    if as_timm:
        lines += ["", "```python", "import timm", ""]
        lines += [f'model = timm.create_model("local-dir:{name}", pretrained=True)', "```"]
    said = {key: ours.get(key) for key in ("seed", "command", "commit", "date")}
    lines += ["", *(f"- {key}: `{value}`" for key, value in said.items() if value is not None)]
    lines += [f"- sha256 of {WEIGHTS}: `{ours['weights']['sha256']}`"]
    lines += [f"- the config of the run is in {CONFIG}", ""]
    return "\n".join(lines)


@cli.program
def main(argv: list[str]) -> int:
    """Take the network of the command line away, or make a run of it."""
    [folder] = cli.arguments(argv, FLAGS, ["RUN"], __doc__)
    output = _OUTPUT.value
    if bool(output) == bool(_WORKDIR.value):
        raise Refusal("give --output=DIR to take a run's network away, or --workdir=RUN to go back")
    if not output:
        step, config, variables = _read(pathlib.Path(folder))
        networks.save(str(_WORKDIR.value), config, variables, step)
        print(f"{_WORKDIR.value}: step {step} of {folder}")
        return 0
    if _PUSH.value:
        hub.package()
    made = save_pretrained(
        folder,
        output,
        step=_STEP.value,
        backbone_alone=_BACKBONE.value,
        license=_LICENSE.value,
    )
    weights = json.loads((made / CONFIG).read_text())[OURS]["weights"]
    print(f"{made}: {log.size(weights['bytes'])}, sha256 {weights['sha256']}")
    if _PUSH.value:
        print(push_to_hub(made, _PUSH.value, private=_PRIVATE.value))
    return 0


if __name__ == "__main__":
    cli.run(main)
