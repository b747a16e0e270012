"""Two processes: gradients agree between ranks and with one process that does both shares, for every loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import small, train_quickly

from flowmaps.build import build, names
from flowmaps.core.random import fold_in
from flowmaps.core.sampling import sample
from flowmaps.engine.checkpoint import find_checkpoint, load_checkpoint

LOSSES = names("losses")
# Networks of images for the losses that need them; they leave parts without gradient.
TRANSFORMER = {"width": 16, "depth": 1, "heads": 2, "patch": 2}
NETS = {
    "autoregressive_flow_matching": {"name": "arflow", **TRANSFORMER},
    "feature_residual": {"name": "blockwise_dit", **TRANSFORMER, "segments": 2, "trunk": 1, "residual": 1},
    "representation_alignment": {"name": "dit", **TRANSFORMER, "depth": 2},
}

CHILD = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = sys.argv[2:]
torch.set_num_threads(1)
from test_distributed import LOSSES, gradient, step_for

dist.init_process_group("gloo")
found = {}
for name in LOSSES:
    step = step_for(name)
    wrapped = DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True)
    found[name] = gradient(wrapped, step, name, dist.get_rank())
    if name == "flow_matching":
        found["law"] = step.loss.times.state_dict()
torch.save(found, f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def step_for(name):
    from flowmaps.core.flow_map import MeanVelocity
    from flowmaps.core.interpolant import Linear
    from flowmaps.core.recurrent import Recurrent
    from flowmaps.couplings.independent import Independent
    from flowmaps.engine.step import Step
    from flowmaps.interpolants.variance_exploding import VarianceExploding
    from flowmaps.maps.denoiser_head import DenoiserHead
    from flowmaps.maps.divergence_head import DivergenceHead
    from flowmaps.nets.mlp import MLP
    from flowmaps.spaces.euclidean import Euclidean

    torch.manual_seed(0)
    teacher = MeanVelocity(MLP((3,), width=16, depth=2)).requires_grad_(False)
    model = MeanVelocity(MLP((3,), width=16, depth=2))
    table = {"name": name, "weighting": "learned"}
    if name in ("distribution_matching", "with_critic"):  # with no errors of their own to weight, and two networks
        velocity = {"name": "velocity", "net": {"name": "mlp", "width": 8, "depth": 2}}
        table = {"name": name, "critic": {"name": "distribution_matching", "critic": velocity}}
    if name == "flow_matching":
        table["times"] = "loss_second_moment"  # which learns from the losses
    if name in ("balanced", "contrastive_flow_matching"):
        table = {"name": name}  # around a loss, whose errors it weights; a difference, which weights would turn round
    if name == "divergence_distillation":
        model = DivergenceHead(MLP((3,), width=16, depth=2, outputs=2))
    if name == "stochastic_interpolant":
        model = DenoiserHead(MLP((3,), width=16, depth=2, outputs=2))
    if name == "velocity_refiner":
        model = MeanVelocity(MLP((6,), width=16, depth=2))
    if name in NETS:
        made = build("nets", NETS[name], shape=(1, 4, 4), classes=0)
        model = MeanVelocity(made) if name == "representation_alignment" else Recurrent(made)
    if name == "representation_alignment":
        table = {"name": name, "encoder": torch.nn.Conv2d(1, 4, 2, 2), "channels": 16, "dimension": 4, "block": 1}
    path = VarianceExploding() if name == "reflected_score_matching" else Linear()
    loss = build("losses", table, teacher=teacher, shape=(3,), classes=0, interpolant=path)
    return Step(model, loss, Independent(), Euclidean())


def gradient(call, step, name, *ranks):
    """Mean gradient over the shares of some ranks, each with its own data and stream."""
    shape = (1, 4, 4) if name in NETS else (3,)
    step.zero_grad()
    for rank in ranks:
        sequence = (3,) if name == "autoregressive_flow_matching" else ()
        data = torch.randn(16, *sequence, *shape, generator=fold_in(5, rank))
        loss, _ = call(data, generator=fold_in(6, rank))
        (loss / len(ranks)).backward()
    return {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def launch(code, arguments, *, module=()):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *module,
        *code,
        *arguments,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "child.py").write_text(CHILD)
    here = str(Path(__file__).parent)
    launch([str(folder / "child.py")], [str(folder), here, str(Path(here).parent)])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_between_ranks_and_with_one_process(name, ranks):
    alone = step_for(name)
    want = gradient(alone, alone, name, 0, 1)
    for got in (ranks[0][name], ranks[1][name]):
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert torch.equal(ranks[0][name][key], ranks[1][name][key])
            # float32 sums in another order
            assert (got[key] - value).abs().max() <= 1e-6 * (1 + value.abs().max())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_in_mixed_precision(name):
    step = step_for(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(step, step, name, 0)
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in found.values())


def test_a_law_of_times_hears_the_losses_of_all_ranks(ranks):
    alone = step_for("flow_matching")
    gradient(alone, alone, "flow_matching", 0, 1)
    for rank in ranks:
        assert all(torch.allclose(rank["law"][name], seen) for name, seen in alone.loss.times.state_dict().items())


@pytest.mark.slow
def test_a_run_on_two_processes_trains_and_resumes(tmp_path, monkeypatch):
    """`torchrun -m flowmaps.cli train`: both ranks stay one model, and the run folder is that of one run, also where
    most of a network has no gradient."""
    from flowmaps.engine.config import write_config

    shared = {"net": NETS["feature_residual"], "map": "recurrent"}
    teacher = train_quickly(small(loss="flow_matching", **shared), tmp_path / "teacher", monkeypatch)
    config = small(
        images=640, loss={"name": "feature_residual"}, teacher=str(teacher), from_teacher=True, **shared
    )  # fmt: skip
    (tmp_path / "mine.toml").write_text(write_config(config))
    module = ["-m", "flowmaps.cli"]
    launch(
        [],
        ["train", str(tmp_path / "mine.toml"), "save.every=320", "--out", str(tmp_path / "run"), "--quiet"],
        module=module,
    )
    whole = load_checkpoint(find_checkpoint(tmp_path / "run"))
    assert whole.images == 640
    half = tmp_path / "run" / "checkpoints" / "000000000320"
    find_checkpoint(tmp_path / "run").rename(tmp_path / "kept")
    launch([], ["train", "--resume", str(half), "--quiet"], module=module)
    again = load_checkpoint(find_checkpoint(tmp_path / "run"))
    assert all(torch.equal(again.weights[k], v) for k, v in whole.weights.items())


def test_sampling_is_not_changed_by_the_engine():
    """A map that left a step is the map that went in."""
    step = step_for("lsd")
    x = torch.randn(4, 3, generator=fold_in(1))
    before = sample(step.model, x, [0.0, 1.0])
    gradient(step, step, "lsd", 0)
    assert torch.equal(sample(step.model, x, [0.0, 1.0]), before)
