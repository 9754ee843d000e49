"""Heads: initial values, what a predictor computes, its memory, its precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxequi.nn import heads


def test_widths():
    assert heads.widths("2048-2048-512") == (2048, 2048, 512)
    assert heads.widths("") == ()


@pytest.mark.parametrize("text", ["2048-", "20x48", "-", "0", "16-0-16", "16,16", "-16"])
def test_malformed_widths(text):
    with pytest.raises(ValueError, match="dashes between them"):
        heads.widths(text)


def test_linear_starts_as_torch(keys):
    params = heads.Linear(2000).init(next(keys), jnp.ones((1, 25)))["params"]
    for values in params.values():
        bound = 25**-0.5
        assert np.abs(values).max() <= bound
        np.testing.assert_allclose(values.std(), bound / 3**0.5, rtol=0.05)
        np.testing.assert_allclose(values.mean(), 0, atol=0.02)


def test_a_hypernetwork_starts_as_a_linear_layer_of_the_relation(keys):
    x, z = jnp.ones((2, 30)), jnp.ones((2, 4))
    kernel = heads.Hypernetwork().init(next(keys), x, z)["params"]["hypernetwork_0"]["kernel"]
    assert kernel.shape == (4, 30 * 30)
    np.testing.assert_allclose(np.abs(kernel).max(), 0.5, rtol=0.01)


def test_projector_layers(keys):
    x, projector = jnp.ones((8, 5)), heads.Projector((7, 6, 3))
    variables = jax.eval_shape(lambda key: projector.init(key, x, True), next(keys))
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "linear_0": {"kernel": (5, 7), "bias": (7,)},
        "norm_0": {"scale": (7,), "bias": (7,)},
        "linear_1": {"kernel": (7, 6), "bias": (6,)},
        "norm_1": {"scale": (6,), "bias": (6,)},
        "linear_2": {"kernel": (6, 3)},
    }


def test_one_matrix_per_entry_of_the_relation(keys):
    x, z = jax.random.normal(next(keys), (6, 5)), jax.random.normal(next(keys), (6, 4))
    predictor = heads.Hypernetwork()
    found, variables = jax.jit(predictor.init_with_output)(next(keys), x, z)
    matrices = variables["params"]["hypernetwork_0"]["kernel"].reshape(4, 5, 5)  # [k, out, in]
    expected = np.einsum("bk,koi,bi->bo", z, matrices, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_generated_layers_are_those_of_each_example(keys, deep):
    """Against the weights of every example written out, which the module never does."""
    x, z = jax.random.normal(next(keys), (6, 5)), jax.random.normal(next(keys), (6, 4))
    predictor = heads.Hypernetwork((7,), deep, bias=True, predicted_bias=True, relu=True)
    found, variables = jax.jit(predictor.init_with_output)(next(keys), x, z)
    params, code = jax.tree.map(np.asarray, variables["params"]), np.asarray(z)
    for i in range(2 * deep):
        layer = params[f"hypernetwork_{i}"]
        code = np.maximum(code @ layer["kernel"] + layer["bias"], 0)
    last = params[f"hypernetwork_{2 * deep}"]
    flat = code @ last["kernel"] + last["bias"]  # [B, 5 * 7 + 7 + 7 * 5 + 5]
    first, bias, second, other = np.split(flat, np.cumsum([35, 7, 35]), axis=-1)
    h = np.maximum(np.einsum("boi,bi->bo", first.reshape(6, 7, 5), x) + bias, 0)
    expected = np.einsum("boi,bi->bo", second.reshape(6, 5, 7), h) + other
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_example_keeps_its_axis(keys):
    x, z = jnp.ones((1, 5)), jnp.ones((1, 4))
    for predictor in (heads.Hypernetwork(), heads.MLPPredictor()):
        assert predictor.init_with_output(next(keys), x, z)[0].shape == (1, 5)


@pytest.mark.parametrize("hidden", [(), (64,)])
def test_memory_of_a_hypernetwork_grows_with_the_width_not_its_square(hidden):
    predictor, batch, width, relation = heads.Hypernetwork(hidden), 64, 128, 4

    def gradient(variables, x, z):
        return jax.grad(lambda v: jnp.sum(jnp.square(predictor.apply(v, x, z))))(variables)

    x, z = jnp.ones((batch, width)), jnp.ones((batch, relation))
    variables = jax.eval_shape(predictor.init, jax.random.key(0), x, z)
    compiled = jax.jit(gradient).lower(variables, x, z).compile()
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    numbers = compiled.memory_analysis().temp_size_in_bytes / 4
    assert numbers < 2 * weights + 10 * batch * width * relation
    assert numbers < batch * width * width / 2


@pytest.mark.parametrize(
    "head",
    [
        functools.partial(heads.Linear, 6),
        functools.partial(heads.MLP, (6, 6)),
        heads.Hypernetwork,
        functools.partial(heads.MLPPredictor, 2),
        functools.partial(heads.Projector, (6, 6)),
    ],
)
def test_compute_in_bfloat16_with_f32_parameters(keys, head):
    x, z = jax.random.normal(next(keys), (8, 6)), jax.random.normal(next(keys), (8, 4))
    name = type(head()).__name__
    arguments = (x, z) if name in ("Hypernetwork", "MLPPredictor") else (x,)
    options = {"train": True} if name == "Projector" else {}
    variables = head().init(next(keys), *arguments, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    options |= {"mutable": ["batch_stats"]}
    full, _ = head().apply(variables, *arguments, **options)
    half, _ = head(dtype=jnp.bfloat16).apply(variables, *arguments, **options)
    assert (full.dtype, half.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05 * np.abs(full).max())


@pytest.mark.parametrize(
    ("widths", "options", "parameters"),
    [  # of revisitAIRL's heads on 2048 features
        ((128,), {"norm": None, "last_bias": True}, 23_770_304 - 23_508_032),
        ((2048, 128), {"norm": None, "last_bias": True}, 27_966_656 - 23_508_032),
        ((4096, 256), {"last_bias": True}, 32_957_760 - 23_508_032),
        ((4096, 256), {}, 32_957_504 - 23_508_032),
    ],
)
def test_published_sizes_of_projectors(widths, options, parameters):
    head, x = heads.Projector(widths, **options), jax.ShapeDtypeStruct((2, 2048), jnp.float32)
    start = jax.eval_shape(lambda k, x: head.init(k, x, True), jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(start["params"])) == parameters


def test_a_frozen_bias_is_added_and_no_parameter(keys):
    layer, x = heads.Linear(3, frozen_bias=True), jax.random.normal(next(keys), (4, 5))
    variables = layer.init(next(keys), x)
    assert set(variables["params"]) == {"kernel"}
    bias = variables["frozen"]["bias"]
    assert 0 < np.abs(bias).max() <= 5**-0.5
    expected = x @ variables["params"]["kernel"] + bias
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5)


def test_a_frozen_bias_of_small_weights_is_zero_and_no_parameter(keys):
    layer = heads.Linear(3, std=0.01, frozen_bias=True)
    variables = layer.init(next(keys), jnp.zeros((4, 500)))
    assert set(variables["params"]) == {"kernel"}
    np.testing.assert_array_equal(variables["frozen"]["bias"], np.zeros(3))
    assert np.std(variables["params"]["kernel"]) == pytest.approx(0.01, rel=0.1)


def test_a_projector_may_end_with_a_norm(keys):
    head = heads.Projector((6, 4), bias=False, last_bias=True, last_norm=True)
    x = jax.random.normal(next(keys), (64, 5))
    variables = head.init(next(keys), x, True)
    assert "norm_1" not in variables["params"]
    assert set(variables["params"]["linear_0"]) == {"kernel"}
    y, _ = head.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-2)
