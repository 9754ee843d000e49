"""Reproductions of `golden/sie`: frozen evaluations, retrieval, and what a checkpoint holds."""

from __future__ import annotations

import jax
import numpy as np
from case import Case, close

from jaxequi.evals import prediction, retrieval
from jaxequi.groups import quaternions
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


EVALUATIONS = {"retrieval_metrics": retrieval_metrics}
