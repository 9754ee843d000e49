"""Reproductions of `golden/sie`: frozen evaluations, retrieval, and what a checkpoint holds."""

from __future__ import annotations

import jax
import numpy as np
from case import Case, close
from flax import traverse_util

from configs import sie as sie_config
from jaxequi.evals import prediction, retrieval
from jaxequi.groups import quaternions
from jaxequi.interop import import_torch
from jaxequi.interop.tables import sie as sie_table
from jaxequi.nn.heads import Hypernetwork

VIEWS = 50


def retrieval_metrics(case: Case):
    weight = case["param/predictor.hypernet.net.0.weight"]
    predict = jax.tree_util.Partial(
        Hypernetwork().apply, {"params": {"hypernetwork_0": {"kernel": weight.T}}}
    )
    sets = {}
    for name in ("train", "val"):
        embedding, latent = case[f"in/embeddings_{name}"], case[f"in/latents_{name}"]
        latent = latent.reshape(-1, VIEWS, latent.shape[-1])
        pose = quaternions.from_euler_xyz(latent[..., :3])  # here the latents stay float64
        sets[name] = {
            "embedding": embedding.reshape(-1, VIEWS, embedding.shape[-1]),
            "latent": latent,
            "relation": quaternions.relative(pose[:, :1], pose).astype(np.float32),
        }
    for normalise, folder in ((True, "norm"), (False, "nonorm")):
        found = retrieval.ranks(predict, sets["val"], normalise=normalise)
        expected = case[f"out/{folder}/MRR/val-val/ranks"]
        np.testing.assert_array_equal(found.reshape(-1), expected)
        metrics = retrieval.evaluate(sets, predict, normalise=normalise)
        metrics |= prediction.evaluate(sets, predict, normalise=normalise)
        ours = {"MRR": "mrr", "PRE": "pre"} | {f"H@{k}": f"hit@{k}" for k in (1, 2, 5, 10)}
        for mode in ("train-train", "val-val", "val-all"):
            for theirs, value in case.under(f"out/{folder}/{mode}").items():
                close(metrics[f"{mode}/{ours[theirs]}"], value, rtol=0, atol=1e-5, name=theirs)
        everything = [sets[name]["embedding"].reshape(-1, 12) for name in ("train", "val")]
        at = prediction.nearest(predict, sets["val"], everything, normalise=normalise).reshape(-1)
        latents = [sets[name]["latent"].reshape(-1, 7) for name in ("train", "val")]
        dots = prediction.agreement(latents[1], np.concatenate(latents)[at])
        close(dots, case[f"out/{folder}/PRE/val-all/dots"], rtol=0, atol=1e-6, name="dots")


VARIANTS = {  # their class -> the variant of configs/sie.py
    "SIE": "sie",
    "SIENoVar": "sie_novar",
    "SIEOnlyEqui": "only_equi",
    "SIERotColor": "sie_rotcolor",
    "VICReg": "vicreg",
    "VICRegPartInv": "vicreg_partinv",
    "VICRegEquiMod": "vicreg_equimod",
    "SimCLR": "simclr",
    "SimCLROnlyEqui": "simclr_only_equi",
    "SimCLROnlyEquiRotColor": "simclr_only_equi_rotcolor",
    "SimCLREquiMod": "simclr_equimod",
    "SimCLREquiModRotColor": "simclr_equimod_rotcolor",
    "SimCLRAugSelf": "simclr_augself",
    "SimCLRAugSelfRotColor": "simclr_augself_rotcolor",
}


def checkpoint_manifest(case: Case):
    manifest = case.meta["manifest"]
    [backbone] = (v for k, v in manifest.items() if k.startswith("backbone"))
    backbone = backbone.get("state", backbone)
    classes = [name for name in manifest if not name.startswith("backbone")]
    for name, total in zip(classes, case["out/total_params"], strict=True):
        shapes = import_torch.shapes(sie_config.get_config(f"{VARIANTS[name]},paper"), 55)
        found = {}
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
            key, layout = sie_table.TABLE(path)
            found[f"module.{key}"] = layout.to_torch(np.broadcast_to(0, leaf.shape)).shape
            if key.endswith("running_mean"):
                found[f"module.{key.replace('running_mean', 'num_batches_tracked')}"] = ()
        expected = {k: tuple(v) for k, v in {**manifest[name]["state"], **backbone}.items()}
        different = set(found.items()) ^ set(expected.items())
        assert not different, f"{name}: {sorted(different)}"
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == total, name


EVALUATIONS = {
    "checkpoint_manifest": checkpoint_manifest,
    "retrieval_metrics": retrieval_metrics,
}
