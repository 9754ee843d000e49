"""From the config of an offline evaluation, and a checkpoint, to a job of plain objects.

The counterpart of `experiment` for configs that name a `checkpoint`: the network, its data and how
pictures reach it are the checkpoint's own; the config says what is asked of them.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxequi import augment, bank, experiment, names, trained
from jaxequi.bank import Bank
from jaxequi.data import order, transforms
from jaxequi.errors import Refusal
from jaxequi.evals import features, heads, prediction, retrieval
from jaxequi.methods import _frozen, _relation
from jaxequi.train import mesh as meshes
from jaxequi.train import optim
from jaxequi.train.loop import Batches, Evaluation, Job
from jaxequi.types import Batch, Features, PyTree, Source

PROTOCOLS = ("clean", "published")
_FEATURES = "features"  # folder of the banks, below that of the checkpoint's run


def build(config: ml_collections.ConfigDict, overridden: Iterable[str] = ()) -> Job:
    """Make the job that an evaluation's config describes.

    Two protocols (`config.protocol`):

      published  as facebookresearch/SIE does it: every step encodes its pictures, in training
                 mode, so that the statistics of the frozen network drift; one random view or pair
                 of each held-out object
      clean      features of all views are computed once in evaluation mode, and heads of all
                 tasks and parts learn from them at the same time; every held-out view is scored

    Raises:
      ValueError: no such checkpoint, or one that cannot answer what is asked; nothing was compiled.
    """
    config = config.copy_and_resolve_references()
    if config.protocol not in PROTOCOLS:
        raise names.unknown("protocol", config.protocol, PROTOCOLS)
    if not config.checkpoint:
        raise Refusal("say what to evaluate: --config.checkpoint=FOLDER_OF_A_RUN")
    network = trained.load(config.checkpoint, config.checkpoint_step)
    mesh = meshes.make_mesh(**config.mesh)
    meshes.check_batch_size(mesh, config.batch_size)
    sources = {split: _source(network, split, config.root) for split in ("train", "val")}
    size, objects = config.batch_size, len(sources["train"])
    steps_per_epoch = order.steps_per_epoch(size, objects)
    total_steps = experiment.total_steps(config, steps_per_epoch, set(overridden))
    tasks = {name: _frozen.task(name, len(sources["train"].class_names)) for name in config.tasks}
    asked = _heads(config, network)
    if config.predictor is None:
        config.predictor = network.has_predictor and config.protocol == "clean"
    if config.predictor:
        _check_predictor(config, network)
    if min(source.num_views for source in sources.values()) < 2:
        raise Refusal("these evaluations compare views; the data store one of each object")

    clean = config.protocol == "clean"
    read = _clean if clean else _published
    batches, evaluations = read(network, config, mesh, sources, tasks)
    saved = config.to_dict()
    saved["total_steps"], saved["total_epochs"] = total_steps, None
    saved["checkpoint_step"] = network.step
    return Job(
        method=_frozen.make(asked, tasks, None if clean else network.backbone),
        optimizer=optim.make(**config.optimizer, batch_size=size, total_steps=total_steps),
        augment=_as_it_is if clean else augment.make(network.config.augment),
        mesh=mesh,
        batches=batches,
        batch_size=size,
        examples=objects,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        config=saved,
        class_names=sources["train"].class_names,
        evaluations=evaluations,
        seed=config.seed,
        log_every=config.log_every_steps,
        eval_every=config.eval_every_steps,
        save_every=config.save_every_steps,
        keep_checkpoints=config.keep_checkpoints,
        show=config.show,
        free_fields=(*experiment.FREE_FIELDS, "features"),
        initial={} if clean else {"extra": {"backbone": network.backbone_variables}},
    )


def _as_it_is(key: jax.Array, batch: Batch) -> Batch:
    return batch


def _source(network: trained.Trained, split: str, root: str | None) -> Source:
    if split not in network.config:
        raise Refusal(
            f"the checkpoint of {network.run} does not say which data it is of; import it with the "
            "config of its experiment"
        )
    part = network.config[split].to_dict()
    if root is not None:
        part["source"]["root"] = root
    return experiment.make_source(part)


def _heads(config: ml_collections.ConfigDict, network: trained.Trained) -> list[_frozen.Head]:
    """The heads of every task, on every part that the network has or the config names."""
    width = network.backbone.features
    inv, equi = network.parts
    if config.equi is not None:
        inv, equi = width - config.equi, config.equi
    parts = config.parts or (_frozen.PARTS if inv and equi else _frozen.PARTS[:1])
    asked = []
    for task in config.tasks:
        for kind in config.heads[task]:
            asked += [_frozen.head(task, part, kind, width, equi) for part in parts]
    return asked


def _check_predictor(config: ml_collections.ConfigDict, network: trained.Trained) -> None:
    if not network.has_predictor:
        what = network.config.method.name if network.config.method else "a backbone alone"
        raise Refusal(
            f"{network.run} is {what}, which predicts no embedding of another view; MRR and PRE "
            "need a method with such a predictor (sie, equimod, only_equi). Set predictor=False"
        )
    if config.protocol != "clean":
        raise Refusal("MRR and PRE are scored on features of all views: use protocol='clean'")
    for mode in config.modes:
        if mode not in prediction.MODES:
            raise names.unknown("mode", mode, prediction.MODES)


def _published(
    network: trained.Trained,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    sources: Mapping[str, Source],
    tasks: Mapping[str, _frozen.Task],
) -> tuple[Batches, dict[str, Evaluation]]:
    """Pictures, read anew in every step; one view where only classes are asked for, else two."""
    views = {2 if task.columns else 1 for task in tasks.values()}
    if len(views) != 1:
        raise Refusal(
            f"protocol 'published' with the tasks {', '.join(tasks) or 'none'}: classes are told "
            "of one view and all else of two, and statistics drift with every view; ask one kind "
            "at a time, or use protocol='clean'"
        )
    [num_views] = views
    size = config.batch_size

    def batches(split: str, rows: Callable[[int], np.ndarray], start: int, stop: int) -> Any:
        return experiment.make_batches(
            start,
            stop,
            source=sources[split],
            part={**network.config[split], "num_views": num_views},
            rows=rows,
            positions=meshes.local_rows(mesh, size),
            seed=config.seed,
            options=config.loader,
        )

    counts = {split: len(source) for split, source in sources.items()}
    train = functools.partial(order.epochs, config.seed, batch_size=size, n=counts["train"])
    val = functools.partial(order.once, batch_size=size, n=counts["val"])
    return functools.partial(batches, "train", train), {
        "val": Evaluation(
            batches=functools.partial(
                batches, "val", val, 0, order.once_steps(size, counts["val"])
            ),
            batch_size=size,
            features=features.gather,
            evaluate=functools.partial(heads.evaluate, tasks=tasks),
        )
    }


def _clean(
    network: trained.Trained,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    sources: Mapping[str, Source],
    tasks: Mapping[str, _frozen.Task],
) -> tuple[Batches, dict[str, Evaluation]]:
    """Representations from a bank, two of each object; at the end the scores of the predictor."""
    banks = {
        split: functools.cache(functools.partial(_bank, network, config, mesh, source, split))
        for split, source in sources.items()
    }
    size = config.batch_size
    positions = meshes.local_rows(mesh, size)
    views = sources["train"].num_views

    def draw(step: int) -> Batch:
        rows = order.epochs(config.seed, step, size, len(sources["train"]))
        rng = np.random.default_rng((config.seed, step))
        first = rng.integers(views, size=size)
        second = (first + rng.integers(1, max(2, views), size=size)) % views
        return _take(banks["train"](), rows[:, None], np.stack([first, second], axis=1), positions)

    def pairs(step: int) -> Batch:
        """Views 0 and 1, 2 and 3, ... of every object; each once."""
        each = sources["val"].num_views // 2
        at = order.once(step, size, len(sources["val"]) * each)
        rows, first = np.divmod(at, each)
        chosen = np.stack([2 * first, 2 * first + 1], axis=1)
        batch = _take(banks["val"](), np.maximum(rows, 0)[:, None], chosen, positions)
        return {**batch, "mask": at[positions] != order.PADDING}

    @contextlib.contextmanager
    def batches(start: int, stop: int) -> Iterator[Iterator[Batch]]:
        yield map(draw, range(start, stop))

    @contextlib.contextmanager
    def held_out() -> Iterator[Iterator[Batch]]:
        count = len(sources["val"]) * (sources["val"].num_views // 2)
        yield map(pairs, range(order.once_steps(size, count)))

    evaluations = {}
    if tasks:
        evaluations["val"] = Evaluation(
            batches=held_out,
            batch_size=size,
            features=features.gather,
            evaluate=functools.partial(heads.evaluate, tasks=tasks),
        )
    if config.predictor:
        scores = functools.cache(functools.partial(_score_predictor, network, config, mesh, banks))
        evaluations["predictor"] = Evaluation(
            batches=lambda: contextlib.nullcontext(iter(())),
            batch_size=size,
            features=lambda encode, batches: {},
            evaluate=lambda features: scores(),
        )
    return batches, evaluations


def _take(bank: Bank, rows: np.ndarray, views: np.ndarray, positions: np.ndarray) -> Batch:
    """Two views of some objects as a batch whose `views` are representations f32[B, 2, R]."""
    rows, views = rows[positions], views[positions]
    batch = {
        "views": bank.representation[rows, views],
        "label": bank.label[rows[:, 0]],
        "index": rows[:, 0].astype(np.int32),
        "mask": np.ones(len(rows), bool),
    }
    return batch if bank.latent is None else {**batch, "latent": bank.latent[rows, views]}


def _bank(
    network: trained.Trained,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    source: Source,
    split: str,
) -> Bank:
    """The features of one split; computed at the first call, unless they lie there already."""
    part, pictures = network.config[split].to_dict(), augment.make(network.config.augment)
    named = bank.name(split, [part, config.root, list(network.config.augment)])

    def encode(values: PyTree, batch: Batch) -> Features:
        views = pictures(jax.random.key(0), batch)["views"]
        params, extra = values
        found = network.encode(params, extra, views)
        kept = {"representation": found["representation"]}
        if network.has_predictor:
            kept["embedding"] = found["predictable"]
        return kept | {name: batch[name] for name in ("label", "latent") if name in batch}

    return bank.compute(
        _folder(network, config.features) / named,
        source,
        transforms.make(part["views"]),
        encode,
        (network.params, network.extra),
        mesh,
        config.loader,
    )


def _score_predictor(
    network: trained.Trained,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    banks: Mapping[str, Callable[[], Bank]],
) -> dict[str, float]:
    """MRR, H@k and PRE of the network's predictor, over all views of both sets."""
    relation = _relation.relation(network.config.method.get("relation", "rotation"))
    sets = {split: _views(get(), relation) for split, get in banks.items()}
    values = jax.device_put((network.params, network.extra), meshes.replicated(mesh))
    predict = jax.tree_util.Partial(network.predict, *values)
    options = {"normalise": config.normalise, "mesh": mesh}
    scores = retrieval.evaluate(sets, predict, source=config.source_view, **options)
    return scores | prediction.evaluate(sets, predict, modes=config.modes, **options)


def _views(found: Bank, relation: _relation.Relation) -> dict[str, np.ndarray]:
    """What the evaluations of a predictor read; relations go from view 0 of an object."""
    if found.embedding is None or found.latent is None:
        raise Refusal("MRR and PRE need data with latents")
    objects, views, columns = found.latent.shape
    start = np.broadcast_to(found.latent[:, :1], found.latent.shape)
    pairs = np.stack([start, found.latent], axis=2).reshape(objects * views, 2, columns)
    z = np.asarray(relation.between({"latent": pairs})).reshape(objects, views, -1)
    return {"embedding": found.embedding, "latent": found.latent, "relation": z}


class HeldOut(NamedTuple):
    """The held-out views of a trained run, and its predictor.

    Attributes:
      views: see `evals.retrieval`.
      predict: (embedding f32[B, E], z f32[B, L]) -> f32[B, E].
      source, pipes: where the pictures come from, and the pipes that they go through.
    """

    views: Mapping[str, np.ndarray]
    predict: Callable[..., jax.Array]
    source: Source
    pipes: Sequence[str]


def held_out(run: pathlib.Path) -> HeldOut | None:
    """Open what an evaluation kept of a run's held-out set; None where there is nothing to open.

    Raises:
      ValueError: the run's checkpoint or the features cannot be read.
    """
    network = trained.load(run)
    if not network.has_predictor or not (found := bank.open_kept(_folder(network, None), "val")):
        return None
    return HeldOut(
        views=_views(found, _relation.relation(network.config.method.get("relation", "rotation"))),
        predict=jax.tree_util.Partial(network.predict, network.params, network.extra),
        source=_source(network, "val", None),
        pipes=network.config.val.views,
    )


def _folder(network: trained.Trained, kept: str | None) -> pathlib.Path:
    """Where the features of a checkpoint are kept."""
    return pathlib.Path(kept or network.run / _FEATURES) / f"step-{network.step}"
