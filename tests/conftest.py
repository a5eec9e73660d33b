"""Fixtures that every test may use; nothing here reaches the network."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Tests start processes that import torch and Lightning: without bytecode each of them compiles for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Two workers share two cores; also set here, because fixtures of modules come before those of tests.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


#: Files that take longest come first, so that two workers end together.
LONG = ("real_data", "configs", "real_pictures", "ranks", "quickstart", "resume", "callback_delayed_start")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and keep the order within each file.

    A name with an address, as ``ids=str`` gives it to a function, would differ between the workers.
    """
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not addresses, addresses
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Each test starts from the same random state, on one thread, and leaves no seed in the environment."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ.pop("PL_SEED_WORKERS", None)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets; the test is skipped where there is none."""
    root = Path(os.environ.get("LIT_ROBUST_DATA", "data"))
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is missing (set LIT_ROBUST_DATA)")
    return root


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """timm or, where it is not installed, a module with two small nets that is called so."""
    installed = importlib.util.find_spec("timm") is not None
    if not installed:
        monkeypatch.syspath_prepend(str(Path(__file__).parent / "fakes"))
    yield
    if not installed:
        sys.modules.pop("timm", None)
