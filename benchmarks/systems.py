"""Other ways to train a flow against the plain one: contrast, a chain of flows, blocks of time, latents.

python benchmarks/systems.py [--part contrast|chain|blocks|latent]
"""

import argparse
import copy
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowmaps.bench.harness import Training, over_seeds, train, write
from flowmaps.build import build
from flowmaps.core.chain import Chain
from flowmaps.core.flow_map import EulerMap, FlowMap, Integrated, MeanVelocity
from flowmaps.core.random import fold_in
from flowmaps.core.recurrent import Recurrent
from flowmaps.core.sampling import Euler, RungeKutta4, sample
from flowmaps.core.types import Loss, Sampler
from flowmaps.couplings.independent import Independent
from flowmaps.couplings.ornstein_uhlenbeck import OrnsteinUhlenbeck
from flowmaps.data.digits import digits
from flowmaps.engine.autoencoder import train_autoencoder
from flowmaps.engine.config import Config, find_recipe, override, read_config, resolve_config
from flowmaps.engine.train import train as run
from flowmaps.flow import load
from flowmaps.losses.contrastive_flow_matching import ContrastiveFlowMatching
from flowmaps.losses.feature_residual import FeatureResidual
from flowmaps.losses.flow_matching import FlowMatching
from flowmaps.metrics.energy_distance import energy_distance
from flowmaps.metrics.sliced_wasserstein import sliced_wasserstein
from flowmaps.oracles.mixture import Mixture
from flowmaps.samplers.recurrent import RecurrentSteps

SEEDS, POINTS = 3, 2000
ABOUT = {
    "contrast": """# Contrastive flow matching, its bias, and the bias undone

Eight Gaussians around (1, 1), MLP of width 128, 400,000 images. velocity: error of the velocity at states of the path
against the exact one, relative root mean square; against biased: the same against (v - c w) / (1 - c), where the loss
is minimal, c its contrast; energy: of 32 Euler steps, over the floor.""",
    "chain": """# Local flow matching against one network of as many weights

Eight Gaussians, 1,200,000 images in all, batch 256, shared evenly by the flows of a chain. 8 links: Ornstein-Uhlenbeck
steps of the published times, .025 1.25^k, and a free flow from what they leave to N(0, I); each link starts from the
weights of the one before. 4 links: of times .0625 1.25^k. Published chains train each link as long as one flow, here
all together. Energy distance over its floor and sliced W2 after as many Euler steps in all, half of them in the free
flow.""",
    "blocks": """# Blocks of time against one network of as much work

Digits, 100,000 images. blockwise_dit: 2 blocks of trunk and 2 for each of 4 segments, of width 96; residual: within a
segment the trunk's features are approximated by one block, trained on 25,000 images more; dit: 4 blocks. After N Euler
steps, MFLOPs N: millions of FLOPs per step and image; energy N: energy distance to held-out digits over its floor.""",
    "latent": """# Latents against pixels at equal seconds

Digits, class by class, MLP of width 256, about 60 processor seconds of training each, whose number of images is found
by trials; seconds: what was used, the autoencoder's training included. Energy distance to held-out digits over
its floor after N steps of Heun; autoencoder: that of decoded held-out digits.""",
}

BLOCKS = {
    "blockwise_dit": {
        "name": "blockwise_dit", "width": 96, "heads": 4, "segments": 4, "trunk": 2, "depth": 2, "residual": 1,
        "rank": 24,
    },
    "dit, width 96": {"name": "dit", "width": 96, "heads": 4, "depth": 4},
    "dit, width 112": {"name": "dit", "width": 112, "heads": 4, "depth": 4},
}  # fmt: skip


def ring(centre: float = 0.0) -> Mixture:
    angle = torch.arange(8) * math.pi / 4
    return Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1) + centre, 0.15)


def mlp(width: int) -> FlowMap:
    return MeanVelocity(build("nets", {"name": "mlp", "width": width, "depth": 4}, shape=(2,), classes=0))


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).square().sum() / b.square().sum()).sqrt())


@torch.no_grad()
def contrast(seed: int) -> list[dict]:
    """How far a contrastive velocity is from the marginal one, and from what its loss is minimal at."""
    flow, rows = ring(1.0), []
    data, other, x0 = (
        flow.sample(POINTS, fold_in(1)),
        flow.sample(POINTS, fold_in(2)),
        torch.randn(POINTS, 2, generator=fold_in(5)),
    )
    t = torch.rand(POINTS, generator=fold_in(3))
    x = (1 - t)[:, None] * torch.randn(POINTS, 2, generator=fold_in(4)) + t[:, None] * other
    exact, mean, floor = flow.velocity(x, t), torch.ones(2), energy_distance(data, other)
    for c in (0.0, 0.05, 0.3):
        loss = ContrastiveFlowMatching(c)
        with torch.enable_grad():
            torch.manual_seed(seed)
            model = train(loss, flow.sample, shape=(2,), images=400_000, seed=seed, net=mlp(128)).model
        for name, made in (("as trained", model), ("bias undone", loss.unbiased(model, mean))):
            y = sample(EulerMap(made), x0, torch.linspace(0, 1, 33), sampler=Euler())
            row = {"method": f"contrast {c:g}, {name}", "seed": seed, "velocity": relative(made.velocity(x, t), exact)}
            row["against biased"] = relative(made.velocity(x, t), (exact - c * mean) / (1 - c))
            rows.append(row | {"energy": energy_distance(y, data) / floor})
    return rows


# Ornstein-Uhlenbeck times of the links after which the free one leads to N(0, I), their width, and whether they are
# warm-started.
CHAINS = {
    "one network": ([], 128, False),
    "8 links and a free one": ([0.025 * 1.25**k for k in range(8)], 40, True),
    "the same, each from fresh weights": ([0.025 * 1.25**k for k in range(8)], 40, False),
    "4 links and a free one": ([0.0625 * 1.25**k for k in range(4)], 55, True),
}


@torch.no_grad()
def chain(seed: int) -> list[dict]:
    """Short flows, each on the data that the one before carried back, against one long one."""
    flow, rows = ring(), []
    data, other = flow.sample(POINTS, fold_in(1)), flow.sample(POINTS, fold_in(2))
    x0, floor = torch.randn(POINTS, 2, generator=fold_in(5, seed)), energy_distance(data, other)
    for name, (spans, width, warm) in CHAINS.items():
        links = linked(flow.sample(100_000, fold_in(6, seed)), [*spans, None], width, warm, 1_200_000, seed)
        row = {"method": name, "seed": seed, "weights": sum(p.numel() for link in links for p in link.parameters())}
        for n in (16, 32, 64):
            each = n // 2 // len(spans) if spans else 0
            steps = [n - each * len(spans), *[each] * len(spans)]
            solved = Chain([Integrated(EulerMap(p), Euler(), k) for p, k in zip(links, steps, strict=True)])
            y = solved(x0, torch.zeros(POINTS), torch.ones(POINTS))
            row |= {f"energy {n}": energy_distance(y, data) / floor, f"sliced W2 {n}": sliced_wasserstein(y, data)}
        rows.append(row)
    return rows


def linked(x: Tensor, spans: list[float | None], width: int, warm: bool, images: int, seed: int) -> list[FlowMap]:
    """Links from noise to data, trained from data to noise on an equal share of the images each; None is free."""
    torch.manual_seed(seed)
    links, net = list[FlowMap](), mlp(width)
    for k, span in enumerate(spans):
        coupling = Independent() if span is None else OrnsteinUhlenbeck(span)
        draw = lambda n, g, x=x: x[torch.randint(len(x), (n,), generator=g)]  # noqa: E731
        with torch.enable_grad():
            link = train(
                FlowMatching(), draw, shape=(2,), images=images // len(spans), seed=seed + 10 * k, net=net,
                coupling=coupling, training=Training(256),
            ).model  # fmt: skip
        links.insert(0, link)
        net = copy.deepcopy(link).requires_grad_(True).train() if warm else mlp(width)
        x = sample(EulerMap(link), x, torch.linspace(1, 0, 9), sampler=RungeKutta4())
    return links


@torch.no_grad()
def blocks(seed: int) -> list[dict]:
    """A stack of blocks for each segment of time against one for all."""
    images, held, rows = digits().x, digits("test").x, []
    floor, shape = energy_distance(images, held), (1, 8, 8)
    x0, grid = torch.randn(1000, *shape, generator=fold_in(5, seed)), lambda n: torch.linspace(0, 1, n + 1)

    def trained(loss: Loss, model: FlowMap, n: int) -> FlowMap:
        draw = lambda n, g: images[torch.randint(len(images), (n,), generator=g)]  # noqa: E731
        with torch.enable_grad():
            return train(loss, draw, shape=shape, images=n, seed=seed, net=model, training=Training(64, 1e-3)).model

    def measured(method: str, model: FlowMap, sampler: Sampler) -> dict:
        row = {"method": method, "seed": seed}
        for n in (4, 8, 16, 32):
            with FlopCounterMode(display=False) as flops:
                sample(model, x0[:1], grid(n), sampler=sampler)
            row[f"MFLOPs {n}"] = flops.get_total_flops() / 1e6 / n
            row[f"energy {n}"] = energy_distance(sample(model, x0, grid(n), sampler=sampler), held) / floor
        return row

    for method, table in BLOCKS.items():
        torch.manual_seed(seed)
        net = build("nets", table, shape=shape, classes=0)
        remembers = table["name"] == "blockwise_dit"
        model = trained(FlowMatching(), Recurrent(net) if remembers else MeanVelocity(net), 100_000)
        rows.append(measured(method, model, Euler()))
        if remembers:
            model = trained(FeatureResidual(), model.requires_grad_(True), 25_000)
            rows.append(measured(f"{method}, residual", model, RecurrentSteps()))
    return rows


def timed(config: Config, images: int, folder: Path) -> tuple[Path, float]:
    """A run, and the processor seconds that it took."""
    began = time.process_time()
    return run(override(config, [f"images={images}"]), folder, quiet=True), time.process_time() - began


def latent(seed: int, seconds: float = 60.0) -> list[dict]:
    """A flow of latents, its autoencoder's training counted, against one of pixels."""
    rows, data, held = [], digits().x, digits("test").x
    floor, plain = energy_distance(data, held), read_config(find_recipe("digits"))
    plain = override(plain, ["loss=flow_matching", "net.width=256", "batch=256", "evaluate=false", f"seed={seed}"])
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/autoencoder.pt"
        inside = override(
            plain, ["space.name=latent", "space.autoencoder.name=convolutional", f"space.autoencoder.path={file}"]
        )
        timed(plain, 10_000, Path(folder) / "warm")  # imports and caches
        began = time.process_time()
        train_autoencoder(resolve_config(inside), images=60_000, quiet=True)
        spent = {"pixels": 0.0, "latents": time.process_time() - began}
        for name, config in (("pixels", plain), ("latents", inside)):
            images, goal, (_, few) = 200_000, seconds - spent[name], timed(config, 10_000, Path(folder) / f"{name}-few")
            for k in range(4):
                trained, used = timed(config, images, Path(folder) / f"{name}-{k}")
                if abs(used - goal) < 0.05 * goal:
                    break
                images = 10_000 + int((images - 10_000) * (goal - few) / (used - few))
            flow, used = load(trained), used + spent[name]
            row = {"method": name, "seed": seed, "images": images, "autoencoder seconds": spent[name], "seconds": used}
            with torch.no_grad():
                decoded = flow.space.decode(flow.space.encode(held, generator=fold_in(1)))
            row["autoencoder"] = energy_distance(decoded, held) / floor
            for n in (2, 4, 8, 16):
                row[f"energy {n}"] = energy_distance(flow.sample(1000, n, sampler="heun"), held) / floor
            rows.append(row)
    return rows


PARTS = {"contrast": contrast, "chain": chain, "blocks": blocks, "latent": latent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS)
    asked = parser.parse_args().part
    torch.set_num_threads(1)
    out = Path(__file__).parent / "systems"
    for part in PARTS if asked is None else (asked,):
        rows = [row for seed in range(SEEDS) for row in PARTS[part](seed)]
        write(out, part, rows, over_seeds(rows, "method"), ABOUT[part])


if __name__ == "__main__":
    main()
