"""Contrastive objectives: hand numbers, laws, and rows of zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.objectives import contrastive

ntxent = jax.jit(contrastive.ntxent, static_argnums=2)


def test_ntxent_by_hand():
    # rows e1, e2 | e1, e2: each has its partner at cosine 1 and two strangers at cosine 0
    a = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    expected = np.log(np.exp(1 / 0.5) + 2) - 1 / 0.5
    np.testing.assert_allclose(ntxent(a, a, 0.5), expected, rtol=1e-6)


def test_logits_put_the_partner_first_and_give_the_loss(keys):
    a, b = (jax.random.normal(next(keys), (3, 4)) for _ in range(2))

    @jax.jit
    def both(a, b):
        logits = contrastive.ntxent_logits(a, b, 0.2)
        rows = contrastive.l2_normalize(jnp.concatenate([a, b]))
        return logits, rows @ rows.T / 0.2, -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    logits, similarity, loss = (np.asarray(found) for found in both(a, b))
    np.testing.assert_allclose(logits[1], similarity[1, np.array([4, 0, 2, 3, 5])], rtol=1e-5)
    np.testing.assert_allclose(logits[5], similarity[5, np.array([2, 0, 1, 3, 4])], rtol=1e-5)
    np.testing.assert_allclose(ntxent(a, b, 0.2), loss, rtol=1e-6)


def test_ntxent_knows_no_order_no_scale_and_no_side(keys):
    a, b = (np.asarray(jax.random.normal(next(keys), (5, 4))) for _ in range(2))
    loss = ntxent(a, b)
    shuffled = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(ntxent(b, a), loss, rtol=1e-5)
    np.testing.assert_allclose(ntxent(a[shuffled], b[shuffled]), loss, rtol=1e-5)
    np.testing.assert_allclose(ntxent(7 * a, b / 7), loss, rtol=1e-5)


def test_a_row_of_zeros_has_a_finite_loss_and_gradient(keys):
    a = jax.random.normal(next(keys), (3, 4)).at[1].set(0)
    loss, gradient = jax.jit(jax.value_and_grad(contrastive.ntxent))(a, jnp.roll(a, 1, axis=1))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        contrastive.ntxent(jnp.ones((3, 4)), jnp.ones((2, 4)))


def queue_of(keys, size, width):
    return jax.jit(contrastive.l2_normalize)(jax.random.normal(next(keys), (size, width)))


@pytest.mark.parametrize("rows", [4, 5, 64])
def test_infonce_is_the_cross_entropy_of_all_keys_in_whatever_parts(rows, keys, monkeypatch):
    monkeypatch.setattr(contrastive, "_QUEUE_ROWS", rows)
    q, k = (jax.random.normal(next(keys), (3, 6)) for _ in range(2))
    queue = queue_of(keys, 10, 6)

    def plain(q):
        a, b = contrastive.l2_normalize(q), contrastive.l2_normalize(k)
        logits = jnp.concatenate([jnp.sum(a * b, 1, keepdims=True), a @ queue.T], 1) / 0.2
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), jnp.sum(logits > logits[:, :1], 1)

    def streamed(q):
        return contrastive.infonce(q, k, queue, 0.2)

    (expected, nearer), gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(q)
    gradient_of = jax.jit(jax.value_and_grad(streamed, has_aux=True))
    (found, ahead), streamed_gradient = gradient_of(q)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(ahead, nearer)
    np.testing.assert_allclose(streamed_gradient, gradient, atol=1e-6)


def test_infonce_teaches_no_key(keys):
    q, k = (jax.random.normal(next(keys), (3, 6)) for _ in range(2))
    queue = queue_of(keys, 4, 6)
    gradient = jax.jit(jax.grad(lambda *a: contrastive.infonce(q, *a)[0], (0, 1)))
    to_k, to_queue = gradient(k, queue)
    assert not to_k.any()
    assert not to_queue.any()


def test_infonce_never_holds_all_similarities():
    """At 4096 rows and 65536 keys they are 1 GiB, and a plain program holds several of that."""
    n, size, width = 4096, 65536, 256
    shapes = [jax.ShapeDtypeStruct((rows, width), jnp.float32) for rows in (n, n, size)]
    step = jax.jit(jax.value_and_grad(lambda q, k, queue: contrastive.infonce(q, k, queue)[0]))
    memory = step.lower(*shapes).compile().memory_analysis()
    part = 4 * n * contrastive._QUEUE_ROWS
    assert part == 2**26
    assert memory.temp_size_in_bytes < 4 * part + 4 * size * width
