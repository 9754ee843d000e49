"""What a compiled program costs: by hand, and of a real program on eight devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxequi.plan import program

# A loop of three with a product and a sum over all four devices; a fused one, whose inside stays
# on the chip; a value in vector memory, S(1).
TEXT = """\
HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.0 = f32[] add(%a, %b)
}

%fused (p.0: f32[8,16], p.1: f32[8,16]) -> f32[8,16] {
  %p.0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %p.1 = f32[8,16]{1,0:T(8,128)} parameter(1)
  %multiply.1 = f32[8,16]{1,0:T(8,128)} multiply(%p.0, %p.1)
  ROOT %add.1 = f32[8,16]{1,0:T(8,128)} add(%multiply.1, %p.1)
}

%condition (s.0: (s32[], f32[8,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  %s.0 = (s32[], f32[8,16]{1,0:T(8,128)}) parameter(0)
  %at = s32[] get-tuple-element(%s.0), index=0
  ROOT %less = pred[] compare(%at, %bound), direction=LT
}

%body (s.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s.1 = (s32[], f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s.1), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s.1), index=1
  %w = f32[16,16]{1,0:T(8,128)S(1)} constant({...})
  %y = f32[8,16]{1,0:T(8,128)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %z = f32[8,16]{1,0:T(8,128)} all-reduce(%y), replica_groups={{0,1,2,3}}
  ROOT %next = (s32[], f32[8,16]{1,0:T(8,128)}) tuple(%i, %z)
}

ENTRY %main (x.0: f32[8,16], w.0: f32[8,16]) -> f32[8,16] {
  %x.0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w.0 = f32[8,16]{1,0:T(8,128)} parameter(1)
  %fusion = f32[8,16]{1,0:T(8,128)} fusion(%x.0, %w.0), kind=kLoop, calls=%fused
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]{1,0:T(8,128)}) tuple(%zero, %fusion)
  %loop = (s32[], f32[8,16]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %last = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %all = f32[32,16]{1,0:T(8,128)} all-gather(%last), replica_groups=[1,4]<=[4]
  ROOT %cut = f32[8,16]{1,0:T(8,128)} slice(%all), slice={[0:8], [0:16]}
}
"""
PART = 8 * 16 * 4


def test_communication_by_hand():
    gather, reduce = program.collectives(TEXT)
    assert gather == program.Collective("all-gather", 4, 4 * PART, 1)
    assert reduce == program.Collective("all-reduce", 4, 3 * PART, 3)
    # A ring of four passes three quarters of everything, twice for a sum.
    assert gather.sent == 4 * PART * 3 / 4
    assert reduce.sent == 2 * 3 * PART * 3 / 4
    assert program.by_kind([gather, reduce]) == {"all-gather": 4 * PART, "all-reduce": 3 * PART}


def test_traffic_by_hand():
    fusion = 3 * PART
    # In the loop the product reads x and writes vector memory, the sum reads that; the condition
    # moves a few bytes of counters.
    loop = 3 * (PART + PART)
    ends = (PART + 4 * PART) + 2 * PART
    assert program.traffic(TEXT) == pytest.approx(fusion + loop + ends, abs=3 * 3 * 4)


def test_products_by_hand():
    assert program.products(TEXT) == 3 * 2 * 8 * 16 * 16


@pytest.mark.parametrize(
    ("window", "labels", "shapes", "flops"),
    [
        # 3x3 over 4x4 with padding: 4 corners of 4 taps, 8 edges of 6, 4 inside of 9.
        (
            "window={size=3x3 pad=1_1x1_1}, ",
            "b01f_01io->b01f",
            ("2,4,4,5", "3,3,5,7", "2,4,4,7"),
            2 * 2 * 7 * 5 * (4 * 4 + 8 * 6 + 4 * 9),
        ),
        # A product of a batch of six, as TPUs are given it.
        (
            "window={size=6 stride=5 lhs_dilate=6}, ",
            "0bf_0io->0bf",
            ("6,3,4", "6,4,5", "6,3,5"),
            2 * 6 * 3 * 4 * 5,
        ),
        # The same for two heads, by padding.
        (
            "window={size=2 pad=1_1 rhs_reversal=1}, ",
            "b0f_0io->b0f",
            ("3,2,4", "2,4,5", "3,3,5"),
            2 * 3 * 5 * 4 * (1 + 2 + 1),
        ),
    ],
)
def test_convolutions_by_hand(window, labels, shapes, flops):
    left, right, result = shapes
    text = (
        "ENTRY %main () -> f32[] {\n"
        f"  %a = f32[{left}]{{0}} parameter(0)\n"
        f"  %b = f32[{right}]{{0}} parameter(1)\n"
        f"  ROOT %c = f32[{result}]{{0}} convolution(%a, %b), {window}dim_labels={labels}\n"
        "}\n"
    )
    assert program.products(text) == flops


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
    ],
)
def test_groups_as_compilers_write_them(groups, size):
    text = TEXT.replace("replica_groups={{0,1,2,3}}", groups)
    [reduce] = [c for c in program.collectives(text) if c.kind == "all-reduce"]
    assert reduce.group == size


@pytest.mark.parametrize(
    ("message", "used", "capacity"),
    [
        ("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded", 20.5, 15.75),
        ("for HLO temporaries (3.00T) exceeds available HBM (95.74G).", 3072, 95.74),
    ],
)
def test_out_of_memory_is_read_from_the_message(message, used, capacity):
    verdict = program.out_of_memory(message)
    assert verdict.used == pytest.approx(used * 2**30)
    assert verdict.capacity == pytest.approx(capacity * 2**30)
    assert program.out_of_memory("something else went wrong") is None


def test_a_real_program_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*p)) for p in (("data",), ()))

    def step(w, x):
        value, gradient = jax.value_and_grad(lambda w: jnp.square(x @ w).sum())(w)
        return w - gradient, value

    w = jax.ShapeDtypeStruct((32, 48), jnp.float32, sharding=whole)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    lowered = jax.jit(step, donate_argnums=0, out_shardings=(whole, whole)).lower(w, x)
    cost = program.cost(lowered.compile())
    [reduce] = cost.collectives
    assert (reduce.kind, reduce.group) == ("all-reduce", 8)
    assert reduce.bytes == (32 * 48 + 1) * 4  # the gradient, and the loss
    assert cost.state == (32 * 48 + 8 * 32) * 4
    assert cost.flops == 2 * 2 * 8 * 32 * 48  # x @ w, and its gradient for w
    assert cost.traffic >= (2 * 32 * 48 + 8 * 32) * 4


@pytest.mark.parametrize(
    "spelled",
    [
        "conditional(%p, %x, %x), true_computation=%more, false_computation=%less",
        "conditional(%i, %x, %x), branch_computations={%less, %more}",
    ],
)
def test_of_a_conditional_the_last_branch_of_jax_counts(spelled):
    square = "f32[16,16]"
    text = "".join(
        f"%{name} (a.{name}: {square}) -> {square} {{\n"
        f"  %a.{name} = {square} parameter(0)\n"
        f"  ROOT %y.{name} = {square} {product}\n}}\n"
        for name, product in (
            ("less", "negate(%a.less)"),
            ("more", "dot(%a.more, %a.more), lhs_contracting_dims={1}, rhs_contracting_dims={0}"),
        )
    )
    text += (
        f"ENTRY %main (x: {square}) -> {square} {{\n  %x = {square} parameter(0)\n"
        f"  ROOT %y = {square} {spelled}\n}}\n"
    )
    assert program.products(text) == 2 * 16**3
