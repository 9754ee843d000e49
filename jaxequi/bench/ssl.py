"""Published steps of augmentation-invariant learning, on small images, and what they are made of.

`moco`, `byol`: MoCo v2 and BYOL with ResNet-50, 16 pairs of 96 pixels, SGD; a queue of 65536.
`mae`: ViT-B/16, 8 images of 128 pixels, AdamW.

`queue`: a queue of 65536 keys of 256 numbers and a batch of 4096: bytes of the queue, of all
similarities at once, and of what the loss with its gradient takes beside its arguments; the same
of a loss that holds all similarities.
`target`: what BYOL's gradient takes beside its arguments; the same if the target's embeddings were
given, and if a gradient went into the target network.
`passes`: of BYOL's step, and of its passes alone: both views forward and backward in the online
network, forward in the target network, optimizer and moving average; `ratio` is the step over their
sum. By the clock (`seconds`), and by the processor, which says more on a busy machine.
`masking`: operations of MAE's gradient and of its encoder alone, 75 % hidden, and all of it seen.
`beside`: what online heads of 1000 classes add to BYOL's step, and what kNN every 5 epochs of
ImageNet adds to a run in batches of 256 (100 000 neighbours and 50 000 queries are encoded, and
compared), in percent of the step, by both clocks.

On a CPU (2026-11-27): the loss takes 144 MiB beside a queue of 64 MiB where all similarities alone
are 1 GiB, and a loss that holds them 2 GiB; BYOL's gradient takes 806 MB with its target pass, 791
MB without, 1541 MB if the target had a gradient; MAE's encoder costs 0.246 of that of all patches.
On two quiet cores a step takes 0.83 s (MoCo), 1.58 s (BYOL) and 1.21 s (MAE). The same networks and
losses written in torch 2.13 take 0.75 to 0.82 s (MoCo) and 1.52 s (BYOL) there, or by the processor
1.50 to 1.64 s where ours take 1.53 s, and 3.04 s each; MAE takes 0.98 of torch's processor time.
BYOL's step is 1.01 times the sum of its passes; kNN adds 0.3 %, and what online heads add (their
arithmetic is 0.1 % of the step) is less than how much two programs of the same step differ.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxequi.bench import _program
from jaxequi.evals import knn
from jaxequi.methods import _siamese, byol, mae, moco, with_online_heads
from jaxequi.models import torchvision_resnet, vit
from jaxequi.objectives.contrastive import infonce, l2_normalize
from jaxequi.objectives.regression import cosine_similarity
from jaxequi.train import optim
from jaxequi.train.step import progress
from jaxequi.types import Array, Method, PyTree

QUEUE, WIDTH, ROWS = 65536, 256, 4096
PAIRS, CLASSES = 16, 1000
CLOCKS = ("seconds", "processor_seconds")
# ImageNet in batches of 256: steps between two evaluations of 5 epochs each, and what is encoded.
STEPS, BATCH, NEIGHBOURS, QUERIES = 5 * 5004, 256, 100_000, 50_000


def run(repeats: int = 3) -> dict[str, Any]:
    """Measure all; steps as of `_program.measure`."""
    sized: dict[str, Any] = {"total_steps": 100, "base_lr": 0.03}
    sgd = optim.make("sgd", momentum=0.9, weight_decay=1e-4, batch_size=PAIRS, **sized)
    adamw = optim.make(
        "adamw", betas=(0.9, 0.95), weight_decay=0.05, no_decay="bias|scale", batch_size=8, **sized
    )
    pairs = jax.random.normal(jax.random.key(1), (PAIRS, 2, 96, 96, 3), jnp.float32)
    images = jax.random.normal(jax.random.key(1), (8, 1, 128, 128, 3), jnp.float32)
    resnet50 = torchvision_resnet.make("resnet50")
    made = byol.make(backbone=resnet50)
    asked = {
        "moco": (moco.make(backbone=resnet50), sgd, pairs),
        "byol": (made, sgd, pairs),
        "mae": (mae.make(backbone=vit.make("base")), adamw, images),
    }
    found: dict[str, Any] = {
        name: _program.measure(method, optimizer, {"views": views}, repeats)
        for name, (method, optimizer, views) in asked.items()
    }
    step = {clock: found["byol"][clock] for clock in CLOCKS}
    found["queue"] = queue_bytes()
    found["target"], passes = _target(made, resnet50, sgd, pairs, repeats)
    ratio = {c: step[c] / sum(one[c] for one in passes.values()) for c in CLOCKS}
    found["passes"] = {"step": step, **passes, "ratio": ratio}
    found["masking"] = masking()
    found["beside"] = _beside(made, sgd, pairs, step, repeats)
    return found


def queue_bytes(rows: int = ROWS, queue: int = QUEUE, width: int = WIDTH) -> dict[str, int]:
    """Bytes of a queue and of what meets it, by the compiled loss and its gradient."""
    q = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    keys = jax.ShapeDtypeStruct((queue, width), jnp.float32)

    def whole(q: Array, k: Array, keys: Array) -> Array:
        q, k = l2_normalize(q), l2_normalize(k)
        logits = jnp.concatenate([jnp.sum(q * k, axis=1, keepdims=True), q @ keys.T], axis=1) / 0.2
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])

    def temporary(loss: Any) -> int:
        return _temporary(jax.jit(jax.value_and_grad(loss)).lower(q, q, keys).compile())

    return {
        "queue": 4 * queue * width,
        "similarities": 4 * rows * (1 + queue),
        "beside_arguments": temporary(lambda q, k, keys: infonce(q, k, keys, 0.2)[0]),
        "beside_arguments_if_whole": temporary(whole),
    }


def masking(size: int = 224, rows: int = 2) -> dict[str, float]:
    """Operations of MAE with ViT-B/16, as lowered; nothing is compiled."""
    network = vit.make("base")
    batch = {"views": jax.ShapeDtypeStruct((rows, 1, size, size, 3), jnp.float32)}
    patches = (size // network.patch) ** 2

    def flops(function: Any, *shapes: Any) -> float:
        cost: Any = jax.jit(function).lower(*shapes).cost_analysis()
        return cost["flops"]

    def whole(ratio: float) -> float:
        method = mae.make(backbone=network, mask_ratio=ratio)
        params, _ = jax.eval_shape(method.init, jax.random.key(0), batch)

        def loss(params: PyTree, batch: PyTree) -> Array:
            return method.loss(params, {}, batch, jax.random.key(0), progress(jnp.int32(0), 1, 1))[
                0
            ]

        return flops(jax.value_and_grad(loss), params, batch)

    def encoder(kept: int) -> float:
        images = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.float32)
        keep = jax.ShapeDtypeStruct((rows, kept), jnp.int32)
        params = jax.eval_shape(
            lambda images: network.init(jax.random.key(0), images, True), images
        )
        return flops(lambda p, x, keep: network.apply(p, x, True, keep), params, images, keep)

    quarter = int(patches * 0.25)
    return {
        "gradient": whole(0.75),
        "gradient_all_seen": whole(0.5 / patches),
        "encoder": encoder(quarter),
        "encoder_all_seen": encoder(patches),
    }


def _target(
    method: Method, backbone: Any, optimizer: Any, pairs: Array, repeats: int
) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """Bytes of BYOL's gradient, its target given, and with a gradient; times of its passes."""
    options = {"last_bias": True}
    g, q = (_siamese.projector("4096-256", **options) for _ in range(2))
    online, target = _siamese.Siamese(backbone, g, q), _siamese.Siamese(backbone, g)
    params, extra = _program.start(method, {"views": pairs})
    collections = {name: tree for name, tree in extra.items() if name != "own"}
    slow = extra["own"]["target"]
    views = [pairs[:, 0], pairs[:, 1]]
    now, key = progress(jnp.int32(0), 1, 1), jax.random.key(0)

    def loss(params: PyTree, extra: PyTree) -> Any:
        return method.loss(params, extra, {"views": pairs}, key, now)

    def given(params: PyTree, collections: PyTree, z: list[Array]) -> Any:
        seen, collections = online.see(params, collections, views, key)
        total = 4 - 2 * cosine_similarity(seen[0].prediction, z[1])
        return total - 2 * cosine_similarity(seen[1].prediction, z[0]), collections

    def embed(slow: PyTree) -> Any:
        seen, slow = _siamese.see_target(target, slow, views, key)
        return [one.embedding for one in seen], slow

    def kept(both: tuple[PyTree, PyTree], collections: PyTree) -> Any:
        params, slow = both
        state = {name: tree for name, tree in slow.items() if name != "params"}
        seen, _ = target.see(slow["params"], state, views, key)
        return given(params, collections, [one.embedding for one in seen])

    def gradient(function: Any, *arguments: Any) -> Any:
        return jax.jit(jax.value_and_grad(function, has_aux=True)).lower(*arguments).compile()

    def update(params: PyTree, opt_state: PyTree, slow: PyTree) -> Any:
        updates, opt_state = optimizer.update(params, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, _siamese.average(slow, params, 0.01)

    forward = jax.jit(embed).lower(slow).compile()
    z, _ = forward(slow)
    alone = gradient(given, params, collections, z)
    # Donated, as in a step: what is updated takes the place of what was.
    opt_state = optimizer.init(params)
    updating = jax.jit(update, donate_argnums=(0, 1, 2)).lower(params, opt_state, slow).compile()
    sizes = {
        "gradient": _temporary(gradient(loss, params, extra)),
        "target_given": _temporary(alone),
        "target_forward": _temporary(forward),
        "with_a_gradient": _temporary(gradient(kept, (params, slow), collections)),
    }
    seconds = {
        "online": _program.seconds(lambda: alone(params, collections, z), repeats),
        "target": _program.seconds(lambda: forward(slow), repeats),
    }
    state = [params, opt_state, slow]

    def move() -> Any:
        state[:] = updating(*state)
        return state

    seconds["update"] = _program.seconds(move, repeats)
    return sizes, seconds


def _beside(
    method: Method, optimizer: Any, pairs: Array, step: dict[str, float], repeats: int
) -> dict[str, dict[str, float]]:
    """What heads and neighbours add to a step, in percent."""
    heads = with_online_heads(method, num_classes=CLASSES, last_view=True)
    labels = jnp.arange(PAIRS) % CLASSES
    measured = _program.measure(heads, optimizer, {"views": pairs, "label": labels}, repeats)
    params, extra = _program.start(method, {"views": pairs})
    encode = jax.jit(method.encode).lower(params, extra, pairs).compile()
    encoding = _program.seconds(lambda: encode(params, extra, pairs), repeats)
    draw = np.random.default_rng(0)
    neighbours = draw.normal(size=(knn.BLOCK, 2048)).astype(np.float32)
    queries, classes = neighbours[: knn.QUERIES], draw.integers(0, CLASSES, knn.BLOCK)
    voting = _program.seconds(
        lambda: knn.votes(neighbours, classes, queries, CLASSES, 200, 0.07), repeats
    )

    def knn_percent(clock: str) -> float:
        image, comparison = encoding[clock] / (2 * PAIRS), voting[clock] / (knn.BLOCK * knn.QUERIES)
        judged = (NEIGHBOURS + QUERIES) * image + NEIGHBOURS * QUERIES * comparison
        return 100 * judged / (STEPS * step[clock] * BATCH / PAIRS)

    return {
        "online_heads": {c: 100 * (measured[c] / step[c] - 1) for c in CLOCKS},
        "knn": {c: knn_percent(c) for c in CLOCKS},
    }


def _temporary(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes
