"""Low-rank updates of a pretrained network, by the package peft if it is installed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LoRA:
    """Freeze a network and train, beside its linear layers, updates of low rank that are zero at first.

    W becomes W + scale B A, with A [rank, in] and B [out, rank].

    Args:
        rank: of the updates.
        scale: of the updates; alpha / rank, if you know it as alpha.
        layers: ends of the names of linear layers that get an update, such as "qkv"; every linear layer if left out.
        open: beginnings of the names of weights that train in full all the same, such as "times".
    Source: Hu, Shen, Wallis & others, LoRA: low-rank adaptation of large language models, 2021, arXiv:2106.09685,
        Section 4.1.
    """

    rank: int
    scale: float = 1.0
    layers: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.scale <= 0:
            raise ValueError(f"lora needs rank >= 1 and scale > 0; got {self.rank} and {self.scale}.")

    def add(self, net: nn.Module) -> list[str]:
        """Do so in place, to a network that does not have updates yet; returns the names of what trains.

        Raises:
            ValueError: if peft is not installed, or a name of layers or open fits nothing.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"lora needs the package peft to train; {error}. Install it with `pip install peft`, or leave lora out."
            ) from error
        linear = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
        weights = dict(net.named_parameters())
        if not linear:
            raise ValueError(f"lora needs a network with linear layers; {type(net).__name__} has none.")
        for end in self.layers:
            if not any(name.endswith(end) for name in linear):
                raise ValueError(
                    f"lora.layers must name linear layers; {end!r} ends no name. There are {', '.join(linear)}."
                )
        for start in self.open:
            if not any(name.startswith(start) for name in weights):
                raise ValueError(
                    f"lora.open must name weights; {start!r} begins no name. There are {', '.join(weights)}."
                )
        chosen = [name for name in linear if not self.layers or name.endswith(self.layers)]
        alpha: Any = self.rank * self.scale  # declared whole by peft, which only divides it by the rank
        inject_adapter_in_model(LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=chosen), net)
        for name, weight in weights.items():  # by their names from before; peft keeps the weights and moves them
            weight.requires_grad_(name.startswith(self.open))
        return [name for name, weight in net.named_parameters() if weight.requires_grad]


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state of the network without updates that does what a network with updates does; needs no peft."""
    plain = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    for key, down in state.items():
        if key.endswith(".lora_A.default.weight"):
            layer = key.removesuffix(".lora_A.default.weight")
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + scale * (
                state[f"{layer}.lora_B.default.weight"] @ down
            )
    return plain
