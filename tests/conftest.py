"""Fixtures that all tests share. Tests run in float64 unless they say otherwise, one thread each."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _float64(request):
    """float64 in tests of mathematics, float32 in those of the engine, which is what users train in."""
    before = torch.get_default_dtype()
    folder = Path(request.node.fspath).parent.name
    torch.set_default_dtype(torch.float32 if folder in ("engine", "cli", "data") else torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _same_global_stream():
    """Weights start from torch's global stream: each test finds it at the same place, whatever ran before, and a test
    that moves it leaves no trace."""
    before = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(before)
