"""A training on two nodes, started as users do, by torchrun or by SLURM's srun, here both on this machine."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_ranks import REPOSITORY, free_port

QUICKSTART = str(REPOSITORY / "configs/quickstart.yaml")
#: Runs the command line, and prints which threads are left when Python ends.
THREADS = """
import atexit, sys
from pathlib import Path
tasks = Path("/proc/self/task")
atexit.register(lambda: print("threads:", *(name.read_text().strip() for name in tasks.glob("*/comm"))))
from lit_robust.cli import main
main(sys.argv[1:])
"""
COMMAND = [
    *("-m", "lit_robust", "fit", "-c", QUICKSTART, "--trainer.limit_train_batches", "4", "--trainer.max_epochs", "1"),
    *("--trainer.log_every_n_steps", "1", "--model.attack.init", "zero", "--trainer.logger.save_dir", "."),
]
ONE_RANK = ["--trainer.strategy", "ddp", "--trainer.devices", "1"]
NODES = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp", "--data.batch_size", "32"]


def by_torchrun(node: str, port: int) -> tuple[list[str], dict[str, str]]:
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", node, "--nproc_per_node", "1"]
    return [*words, "--master_addr", "127.0.0.1", "--master_port", str(port)], {}


def by_srun(node: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Of what srun tells the tasks of a job of two nodes what Lightning reads; its port follows from the job's id."""
    job = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost,other"}
    task = {"SLURM_NODEID": node, "SLURM_PROCID": node, "SLURM_LOCALID": "0"}
    return [], {**job, **task, "SLURM_JOB_NAME": "fit", "SLURM_JOB_ID": f"12{port % 10_000:04}"}


def start(folder: Path, log: str, *words: str, **variables: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | variables
    with (folder / log).open("w") as file:
        return subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=file, stderr=file)


def ended(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(timeout=300) == 0, log.read_text()


def curve(folder: Path) -> list[tuple[float, ...]]:
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = [*csv.DictReader(file)]
    return [tuple(float(row[key]) for key in ("step", "train/loss")) for row in rows if row["train/loss"]]


@pytest.mark.parametrize("launcher", [by_torchrun, by_srun])
def test_two_nodes_train_as_one_process_with_the_same_global_batch(launcher, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    ended(start(one, "log", *COMMAND), one / "log")
    port = free_port()
    launches = [(node, *launcher(node, port)) for node in ("0", "1")]
    nodes = [start(two, node, *words, *COMMAND, *NODES, **variables) for node, words, variables in launches]
    try:
        for rank, node in enumerate(nodes):
            ended(node, two / str(rank))
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert len(list(two.rglob("metrics.csv"))) == 1, "rank 0 alone writes"
    assert len(curve(one)) == 4 + 1, "four steps and their mean"
    for (step, loss), (same_step, same_loss) in zip(curve(one), curve(two), strict=True):
        assert step == same_step
        assert abs(loss - same_loss) < 1e-5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the threads of a process")
def test_no_thread_of_the_process_group_outlives_the_command(tmp_path):
    """One that outlives it aborts the process now and then: ``terminate called without an active exception``."""
    ended(start(tmp_path, "log", "-c", THREADS, *COMMAND[2:], *ONE_RANK), tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert "distributed_backend=gloo" in log
    assert "gloo" not in log.split("threads:")[1]
