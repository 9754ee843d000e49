"""What a trace says of a step, by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxequi.nn import spread
from jaxequi.plan import trace
from jaxequi.train import mesh as meshes

BATCH, IN, OUT = 64, 32, 48


def measured(step, *arguments, batch_leaves=1):
    shapes = [jax.ShapeDtypeStruct(*one) for one in arguments]
    jaxpr = jax.jit(step).trace(*shapes).jaxpr
    return trace.measure(jaxpr, BATCH, batch_leaves, {(IN, OUT)})


def test_a_linear_layer_and_its_gradient():
    def step(w, x):
        return w - jax.grad(lambda w: jnp.square(jnp.tanh(x @ w)).sum())(w)

    found = measured(step, ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32))
    assert found.flops16 == 0
    assert found.flops32 == 2 * (2 * BATCH * IN * OUT)  # x @ w, and its gradient for w
    # At the fullest: the batch and the product, and nothing that is computed of it in passing.
    assert found.split == (BATCH * IN + BATCH * OUT) * 4
    assert found.whole == pytest.approx(IN * OUT * 4, abs=64)


def test_bfloat16_is_told_apart():
    def step(w, x):
        return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).sum()

    found = measured(step, ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32))
    assert (found.flops16, found.flops32) == (2 * BATCH * IN * OUT, 0)


def test_loops_count_as_often_as_they_run():
    def step(w, x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w @ w.T), x)

    found = measured(step, ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32))
    assert found.flops32 == 5 * 2 * (2 * BATCH * IN * OUT)


def test_convolutions_count_neither_padding_nor_dilation():
    def step(k, x):
        def loss(k, x):
            y = jax.lax.conv_general_dilated(
                x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.square(y).sum()

        return jax.grad(loss, argnums=(0, 1))(k, x)

    found = measured(step, ((2, 2, 3, 5), jnp.float32), ((BATCH, 8, 8, 3), jnp.float32))
    # Forward, and the gradients for the image and for the kernel: each tap once.
    assert found.flops32 == 3 * 2 * BATCH * 16 * 4 * 3 * 5


def test_remat_computes_again_and_keeps_less():
    def step(w, x, again):
        def block(x, w):
            return jnp.tanh(jnp.tanh(x @ w) @ w.T)

        def loss(w):
            y = x
            for _ in range(6):
                y = (jax.checkpoint(block) if again else block)(y, w)
            return jnp.square(y).sum()

        return jax.grad(loss)(w)

    arguments = ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32)
    plain = measured(lambda w, x: step(w, x, False), *arguments)
    again = measured(lambda w, x: step(w, x, True), *arguments)
    assert again.flops32 > plain.flops32
    assert again.split < plain.split


def test_parts_of_a_batch_scale_with_it():
    """As an accumulated gradient takes them, one after the other."""

    width = 20

    def step(w, x):
        parts = x.reshape(2, -1, width)
        return jax.lax.scan(lambda total, part: (total + (part @ w).sum(), None), 0.0, parts)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((width, OUT), (BATCH, width))]
    jaxpr = jax.make_jaxpr(step)(*shapes)
    parts, whole = (trace.measure(jaxpr, size, 1, {(width, OUT)}) for size in (BATCH // 2, BATCH))
    assert parts.split >= whole.split + BATCH // 2 * OUT * 4
    assert parts.flops32 == whole.flops32 == 2 * BATCH * width * OUT


def test_what_each_device_does_alone_is_all_of_the_batch_together():
    def step(w, x):
        y = spread.by_rows(lambda x, w: jnp.tanh(x @ w), x, w)
        return jnp.square(y).sum()

    shapes = ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32)
    alone = measured(step, *shapes)
    with meshes.known(meshes.make_mesh(4, 2)):
        shared = measured(step, *shapes)
    assert shared == alone


def test_a_weight_is_made_into_a_filter_by_every_device():
    def step(w, x):
        return spread.by_rows(lambda x, w: x @ (w @ w.T), x, w).sum()

    with meshes.known(meshes.make_mesh(4, 2)):
        found = measured(step, ((IN, OUT), jnp.float32), ((BATCH, IN), jnp.float32))
    assert found.flops32 == 2 * BATCH * IN * IN + 8 * 2 * IN * OUT * IN
