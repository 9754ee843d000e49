"""Train steps written with torch's own layers, to hold ours against; torch is not installed by us.

`moco`: He et al. 2020 and Chen et al. 2020, two ResNet-50 (torchvision's, v1.5) and a queue.
`mae`: He et al. 2022, ViT-B/16 on a quarter of the patches, a decoder of eight blocks.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any


def measure(name: str, kind: str, rows: int, side: int, repeats: int) -> dict[str, Any]:
    """Time a step in f32 or, by autocast, in bf16: least seconds of so many."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # as the published programs have it
    step = STEPS[name](torch, device, rows, side)
    seconds = []
    for _ in range(repeats + 1):
        # For each step anew: weights stay cast as long as it lasts.
        with torch.autocast(device, torch.bfloat16, enabled=kind == "bfloat16"):
            seconds.append(_timed(torch, device, step))
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "seconds": min(seconds[1:]),
        "batch_size": rows,
        "examples_per_second": rows / min(seconds[1:]),
    }


def _timed(torch: Any, device: str, step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _resnet50(nn: Any, *head: Any) -> Any:
    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            out = 4 * width
            self.path = nn.Sequential(
                *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)),
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                *(nn.BatchNorm2d(width), nn.ReLU(True)),
                *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
            )
            self.short = nn.Identity()
            if stride > 1 or channels != out:
                conv = nn.Conv2d(channels, out, 1, stride, bias=False)
                self.short = nn.Sequential(conv, nn.BatchNorm2d(out))

        def forward(self, x: Any) -> Any:
            return (self.path(x) + self.short(x)).relu_()

    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers = [stem, nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (size, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for i in range(size):
            layers.append(Block(channels, width, 2 if stage and i == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def _moco(torch: Any, device: str, rows: int, side: int, queued: int = 65536) -> Callable[[], None]:
    nn, functional = torch.nn, torch.nn.functional
    head = (nn.Linear(2048, 2048), nn.ReLU(True), nn.Linear(2048, 128))
    query = _resnet50(nn, *head).to(device)
    target = copy.deepcopy(query)
    queue = functional.normalize(torch.randn(queued, 128, device=device))
    views = torch.randn(2, rows, 3, side, side, device=device)
    sgd = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    place = [0]

    def step() -> None:
        with torch.no_grad():
            for old, new in zip(target.parameters(), query.parameters(), strict=True):
                old.lerp_(new, 0.001)
            order = torch.randperm(rows, device=device)
            keys = functional.normalize(target(views[1][order])[torch.argsort(order)]).float()
        q = functional.normalize(query(views[0]))
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ queue.clone().T], 1) / 0.2
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        loss = functional.cross_entropy(logits, labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        queue[place[0] : place[0] + rows] = keys
        place[0] = (place[0] + rows) % (queued - queued % rows)

    return step


def _mae(torch: Any, device: str, rows: int, side: int, patch: int = 16) -> Callable[[], None]:
    nn: Any = torch.nn
    patches, pixels = (side // patch) ** 2, patch * patch * 3

    def blocks(depth: int, width: int, heads: int) -> Any:
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encoder = nn.Linear(pixels, 768), blocks(12, 768, 12)
            self.narrow, self.decoder = nn.Linear(768, 512), blocks(8, 512, 16)
            self.predict = nn.Linear(512, pixels)
            self.cls = nn.Parameter(torch.zeros(1, 1, 768))
            self.hidden = nn.Parameter(torch.zeros(1, 1, 512))
            self.register_buffer("at", torch.randn(1, patches, 768))
            self.register_buffer("decoded_at", torch.randn(1, patches + 1, 512))

        def forward(self, x: Any) -> Any:
            order = torch.argsort(torch.rand(rows, patches, device=device), 1)
            kept = order[:, : patches // 4, None]
            tokens = torch.gather(self.embed(x) + self.at, 1, kept.expand(-1, -1, 768))
            y = self.narrow(self.encoder(torch.cat([self.cls.expand(rows, -1, -1), tokens], 1)))
            rest = self.hidden.expand(rows, patches - kept.shape[1], -1).to(y.dtype)
            shuffled = torch.cat([y[:, 1:], rest], 1)
            back = torch.argsort(order, 1)[..., None].expand(-1, -1, 512)
            whole = torch.cat([y[:, :1], torch.gather(shuffled, 1, back)], 1) + self.decoded_at
            error = (self.predict(self.decoder(whole))[:, 1:] - x).square().mean(-1)
            mask = torch.ones_like(error).scatter(1, kept[..., 0], 0.0)
            return (error * mask).sum() / mask.sum()

    model = Model().to(device)
    x = torch.randn(rows, patches, pixels, device=device)
    adamw = torch.optim.AdamW(model.parameters(), 1.5e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step() -> None:
        loss = model(x)
        adamw.zero_grad()
        loss.backward()
        adamw.step()

    return step


STEPS = {"moco": _moco, "mae": _mae}
