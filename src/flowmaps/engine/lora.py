"""Low-rank updates of a pretrained network, by the package peft if it is installed."""

from collections.abc import Sequence

from torch import nn

__all__ = ["add_lora"]


def add_lora(
    net: nn.Module, rank: int = 16, scale: float = 1.0, layers: Sequence[str] = (), open_: Sequence[str] = ()
) -> list[str]:
    """Freeze a network, in place, and put a trainable low-rank update, zero at first, beside its linear layers.

    Args:
        net: the network; its own weights no longer train.
        rank: of the updates.
        scale: of the updates.
        layers: ends of the names of linear layers that get one; every linear layer when left out.
        open_: beginnings of the names of weights that train in full all the same, such as "times".
    Returns:
        The names of what trains.
    Raises:
        ImportError: if peft is not installed.
    Source: Hu, Shen, Wallis & others, LoRA: low-rank adaptation of large language models, 2021, arXiv:2106.09685.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"low-rank updates need the package peft; {error}. Install it with `pip install peft`."
        ) from error
    found = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [name for name in found if not layers or name.endswith(tuple(layers))]
    if not chosen:
        raise ValueError(f"layers must name linear layers; got {list(layers)}. There are {', '.join(found)}.")
    net.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank * scale, target_modules=chosen), net)
    for name, weight in net.named_parameters():
        if name.startswith(tuple(open_)) and "lora_" not in name:
            weight.requires_grad_(True)
    return [name for name, weight in net.named_parameters() if weight.requires_grad]
