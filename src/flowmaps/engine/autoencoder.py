"""Training of the autoencoder among whose latents a flow will live."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..build import build
from ..core.random import fold_in
from ..data._dataset import Dataset
from ..spaces.latent import Latent
from .config import Config, ConfigError, resolve_config
from .objects import MEAN_OF, held_out, open_data
from .order import Order
from .progress import ProgressLine
from .schedule import Schedule


def train_autoencoder(
    config: Config, *, images: int = 500_000, batch: int = 128, lr: float = 1e-3, quiet: bool = False
) -> float:
    """Train the autoencoder of a recipe's space, measure its latents, and write it where the recipe will look for it.

    Args:
        config: options of the run whose `space.autoencoder` is trained, such as "convolutional": a module with
            loss(data, generator) -> [B], buffers `shift` and `scale` for its latents, and save(path).
        images: length of the training.
        batch: images per step.
        lr: learning rate of Adam, which falls as a cosine.
        quiet: show no progress.
    Returns:
        Root mean square error of the means' reconstructions, on held-out data.
    Raises:
        ConfigError: if the recipe names no autoencoder, or no path for it, or a number is out of range.
    """
    if images < 1 or batch < 1 or not lr > 0:
        raise ConfigError(f"images and batch must be at least 1 and lr positive; got {images}, {batch} and {lr}.")
    config = resolve_config(config)
    table: dict[str, Any] = config["space"].get("autoencoder", {})
    if not table.get("path"):
        raise ConfigError(
            "the space must name an autoencoder and a file for it; set space.name=latent, "
            "space.autoencoder.name=convolutional and space.autoencoder.path."
        )
    Path(table["path"]).parent.mkdir(parents=True, exist_ok=True)
    data = open_data(config)
    device = "cuda" if torch.cuda.is_available() and config["device"] != "cpu" else "cpu"
    seed = config["seed"]
    torch.manual_seed(fold_in(seed, 0).initial_seed())
    coder: Any = build("autoencoders", table | {"path": ""}, shape=data.shape).to(device)
    optimizer, schedule = torch.optim.Adam(coder.parameters(), lr), Schedule()
    with ProgressLine("autoencoder", images, quiet=quiet) as progress:
        for step, indices in enumerate(Order(len(data), batch, images, seed=fold_in(seed, 1).initial_seed())):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule.factor(step * batch, images)
            x = data.__getitems__(indices)[0].to(device)
            loss = coder.loss(x, generator=fold_in(seed, 2, step, device=device)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(coder.parameters(), config["clip"])
            optimizer.step()
            if step % 10 == 0:
                progress.update(step * batch, f"loss {float(loss.detach()):.4f}")
    space = Latent(coder).standardised(_some(data).to(device), generator=fold_in(seed, 3))
    for buffer, values in ((coder.shift, space.shift), (coder.scale, space.scale)):
        buffer.copy_(torch.tensor(values).reshape(buffer.shape))
    coder.save(table["path"])
    unseen, means = _some(held_out(config, data)).to(device), Latent(coder, draw=False)
    with torch.no_grad():
        errors = [means.decode(means.encode(part)) - part for part in unseen.split(256)]
    return float(torch.cat(errors).square().mean().sqrt())


def _some(data: Dataset) -> torch.Tensor:
    """Data spread over all of them, not too many to measure."""
    return data.__getitems__(range(0, len(data), max(1, len(data) // MEAN_OF)))[0]
