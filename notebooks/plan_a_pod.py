# %% [markdown]
# # Plan a pod
#
# Before hours on machines that cost money: does a run fit, how long does a step take at least, what
# bounds it, what does it cost? The program answers from a trace of the train step. Nothing is
# trained, no data are needed, and no accelerator. A minute on a CPU.
#
# On the command line it is
# `python -m jaxequi.plan --config=configs/moco.py:v2,paper --topology=v5e:2x4 --price=1.2`. With
# the extra `".[tpu]"` the compiler of TPUs says itself what fits; here are estimates.

# %%
import numpy as np
from matplotlib.figure import Figure

from configs import mae, moco, sie
from jaxequi.plan import chips, estimate, inputs, planning, tables

# %% [markdown]
# ## One run on one slice
#
# MoCo v2 as published: ResNet-50 at 224 pixels in batches of 256. ImageNet is not here, so it is
# planned by its size.

# %%
config, assumed = inputs.prepared(moco.get_config("v2,paper"), inputs.Data())
print(*assumed, sep="\n")


PRICES = {"v5e:2x4": 1.2, "v6e:2x4": 2.7, "v5p:2x2x2": 4.2, "h100:8": 4.0}  # of a chip-hour
step = planning.traced(inputs.job(config, devices=8))
cost = planning.estimated(step)
plans = {
    name: planning.plan(chips.parse(name), step, cost, "estimated", price)
    for name, price in PRICES.items()
}
print(tables.of_plan(plans["v5e:2x4"]))

# %% [markdown]
# ## The same run on other machines
#
# Times are lower bounds at the peak rates of the data sheets. They rank machines; they promise
# nothing. The prices are made up: put in your own.

# %%
print(f"{'slice':<12}{'step, ms':>10}{'bound by':>16}{'memory':>9}{'hours':>8}{'cost':>7}")
for name, plan in plans.items():
    used = plan["memory_bytes"] / plan["capacity_bytes"]
    print(
        f"{name:<12}{1e3 * plan['step_seconds']:>10.1f}{estimate.PARTS[plan['bound']]:>16}"
        f"{used:>9.0%}{plan['hours']:>8.1f}{plan['cost']:>7.0f}"
    )

# %% [markdown]
# ## The roofline
#
# A chip multiplies so many numbers a second and moves so many bytes. Their ratio is the corner of
# the roof: a step that does less with each byte is bound by memory, and a faster multiplier would
# not help it.

# %%
part = chips.parse("v5e:1x1")
costs = {"MoCo v2, ResNet-50": cost}
others = {
    "MAE, ViT-B": mae.get_config("base,paper"),
    "SIE, ResNet-18": sie.get_config("sie,paper"),
    "SIE, the three steps of a smoke test": sie.get_config("sie,smoke"),
}
for name, config in others.items():
    config, _ = inputs.prepared(config, inputs.Data())
    costs[name] = planning.estimated(planning.traced(inputs.job(config, devices=1)))

figure = Figure(figsize=(7.2, 4.4), layout="constrained")
figure.suptitle(f"the roof of {part.chip.name}, and where the steps of runs stand under it")
axis = figure.subplots()
intensity = np.geomspace(1, 3000, 200)
roof = np.minimum(part.chip.flops, intensity * part.chip.bandwidth)
axis.plot(intensity, roof / 1e12, color="black")
corner = part.chip.flops / part.chip.bandwidth
axis.axvline(corner, color="grey", ls=":", lw=1, label=f"{corner:.0f}: the corner")
places = {name: cost.flops / cost.traffic for name, cost in costs.items()}
for name, place in places.items():
    reached = min(part.chip.flops, place * part.chip.bandwidth)
    axis.plot(place, reached / 1e12, "o", label=f"{place:.0f}: {name}")
axis.set(xscale="log", yscale="log", xlabel="operations on each byte moved")
axis.set(ylabel="operations a second at most, 1e12")
axis.grid(alpha=0.3)
axis.legend(fontsize=8, title="operations on each byte", loc="lower right")
figure
