"""State dicts of torchvision and timm, by the rules of their code: every key finds its place.

The names and shapes are written down here from torchvision's `models/resnet.py` and timm's
`models/vision_transformer.py`, and their sizes held against the published counts; no table of ours
is asked.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxequi.interop import formats, mapping

# blocks of the four stages, channels between a bottleneck's convolutions over those of its stage
RESNETS = {
    "resnet18": ((2, 2, 2, 2), None),
    "resnet34": ((3, 4, 6, 3), None),
    "resnet50": ((3, 4, 6, 3), 1),
    "resnet101": ((3, 4, 23, 3), 1),
    "resnet152": ((3, 8, 36, 3), 1),
    "wide_resnet50_2": ((3, 4, 6, 3), 2),
    "wide_resnet101_2": ((3, 4, 23, 3), 2),
}
VITS = {  # patch, width, depth
    "vit_tiny_patch16_224": (16, 192, 12),
    "vit_small_patch16_224": (16, 384, 12),
    "vit_base_patch16_224": (16, 768, 12),
    "vit_large_patch16_224": (16, 1024, 24),
    "vit_huge_patch14_224": (14, 1280, 32),
}
PARAMETERS = {  # of 1000 classes, as published
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_huge_patch14_224": 632_045_800,
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def resnet(name):
    """Names and shapes of a ResNet of torchvision."""
    sizes, wide = RESNETS[name]
    shapes = {}

    def conv(at, out, into, size):
        shapes[f"{at}.weight"] = (out, into, size, size)

    def norm(at, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{at}.{leaf}"] = (channels,)
        shapes[f"{at}.num_batches_tracked"] = ()

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    into = 64
    for stage, blocks in enumerate(sizes):
        planes = 64 * 2**stage
        out = planes * (4 if wide else 1)
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            inner = planes * (wide or 1)
            kernels = [(inner, into, 1), (inner, inner, 3), (out, inner, 1)]
            if not wide:
                kernels = [(planes, into, 3), (planes, planes, 3)]
            for number, (rows, columns, size) in enumerate(kernels, start=1):
                conv(f"{at}.conv{number}", rows, columns, size)
                norm(f"{at}.bn{number}", rows)
            if block == 0 and (stage or wide):
                conv(f"{at}.downsample.0", out, into, 1)
                norm(f"{at}.downsample.1", out)
            into = out
    shapes["fc.weight"], shapes["fc.bias"] = (1000, into), (1000,)
    return shapes


def transformer(name):
    """Names and shapes of a vision transformer of timm."""
    patch, width, depth = VITS[name]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + (224 // patch) ** 2, width)}

    def linear(at, out, into):
        shapes[f"{at}.weight"], shapes[f"{at}.bias"] = (out, into), (out,)

    shapes["patch_embed.proj.weight"] = (width, 3, patch, patch)
    shapes["patch_embed.proj.bias"] = (width,)
    for block in range(depth):
        at = f"blocks.{block}"
        linear(f"{at}.attn.qkv", 3 * width, width)
        linear(f"{at}.attn.proj", width, width)
        linear(f"{at}.mlp.fc1", 4 * width, width)
        linear(f"{at}.mlp.fc2", width, 4 * width)
    for norm in ("norm", *(f"blocks.{b}.norm{n}" for b in range(depth) for n in (1, 2))):
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    linear("head", 1000, width)
    return shapes


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_finds_its_place(name, monkeypatch):
    monkeypatch.setattr(mapping, "_own", lambda array, dtype: array)  # billions of bytes otherwise
    shapes = resnet(name) if name in RESNETS else transformer(name)
    learned = {key: s for key, s in shapes.items() if not key.endswith(STATISTICS)}
    assert sum(int(np.prod(shape)) for shape in learned.values()) == PARAMETERS[name]
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    found = formats.of_file(state)
    network = formats.find(found).read(state, None)
    named = network.config.backbone.architecture
    assert (named if name in RESNETS else f"vit_{named}_patch{VITS[name][0]}_224") == name
    counted = sum(leaf.size for leaf in jax.tree.leaves(network.variables["params"]))
    assert counted == PARAMETERS[name]
    passed = [line for line in network.left_out if "num_batches_tracked" not in line]
    assert passed == []
    state["layer9.weight"] = state.pop(next(key for key in state if key.endswith("2.weight")))
    with pytest.raises(
        ValueError, match=r"1 missing or of another shape \(-\), 1 left over \(\+\)"
    ):
        formats.find(found).read(state, network.config)
