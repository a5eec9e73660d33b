"""SIGTERM and Ctrl-C: the run is saved, says how to resume, and goes on as if it had not been stopped."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from torchvision.transforms import v2

from lit_robust.callbacks import EMAWeights
from lit_robust.cli import main
from lit_robust.data.folders import FolderImages, Workers
from lit_robust.defenses import PGDAT
from lit_robust.ranks import stop_request
from lit_robust.runs import checkpoints_of
from lit_robust.training.signals import Stopped
from tests.front_door import TINY
from tests.methods import build
from tests.sender import Send
from tests.test_ranks import free_port
from tests.test_resume import differences
from tests.tiny import images, loader, trainer

RUN = Path("runs/tiny/version_0")

#: Two validations per epoch of three batches, averages, and a ramp, which logs at an epoch's last batch.
MORE = """
trainer:
  max_epochs: 3
  val_check_interval: 0.5
  callbacks+:
    - class_path: EMAWeights
      init_args: {decay: 0.8}
    - class_path: AttributeRamp
      init_args: {attribute: attack.eps, schedule: {class_path: lit_robust.schedules.Linear,
        init_args: {start: 0.1, stop: 0.2, begin: 0, end: 3}}}
data:
  init_args: {train_size: 128, eval_batch_size: 8}
"""


def fit(*args: object) -> None:
    Path("tiny.yaml").write_text(TINY)
    Path("more.yaml").write_text(MORE)
    main(["fit", "-c", "tiny.yaml", "-c", "more.yaml", *map(str, args)])


def stopped(code: int, **send: object) -> None:
    """A run to which a signal is sent."""
    flags = [f"--trainer.callbacks.{name}={value}" for name, value in send.items()]
    with pytest.raises(SystemExit) as stop:
        fit("--trainer.callbacks+=tests.sender.Send", *flags)
    assert stop.value.code == code


def assert_the_same(run: Path, uninterrupted: Path) -> None:
    assert (run / "metrics.csv").read_text() == (uninterrupted / RUN / "metrics.csv").read_text()
    mine, theirs = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (run, uninterrupted / RUN)
    )
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "epoch", "global_step"):
        assert differences(mine[part], theirs[part]) == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    before, folder = Path.cwd(), tmp_path_factory.mktemp("uninterrupted")
    os.chdir(folder)
    fit()
    os.chdir(before)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _handlers():
    """Ctrl-C as at a terminal: a shell's background job ignores it, and so does Lightning after one in its setup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


MOMENTS = {
    "in the first batch": {"hook": "on_train_batch_start", "epoch": 0},
    "in mid-epoch": {"hook": "on_train_batch_start", "batch_idx": 2},
    "in a batch that is validated": {"hook": "on_train_batch_end", "batch_idx": 1},
    "in an epoch's last batch": {"hook": "on_train_batch_start", "batch_idx": 3},
    "at an epoch's end": {"hook": "on_train_epoch_end"},
    "in the last batch of all": {"hook": "on_train_batch_start", "epoch": 2, "batch_idx": 3},
    "before the first batch": {"hook": "on_train_start", "epoch": 0},
    "in a validation in mid-epoch": {"hook": "on_validation_batch_start", "batch_idx": 1},
    "in the first validation": {"hook": "on_validation_batch_end", "epoch": 0, "batch_idx": 2},
    "in the last batch of a validation": {"hook": "on_validation_batch_start", "batch_idx": 2},
    "at a validation's end": {"hook": "on_validation_end"},
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_run_that_sigterm_has_stopped_goes_on_as_if_it_had_not_been(moment, here, uninterrupted):
    stopped(143, **moment)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (RUN / ".training").exists()
    fit("--ckpt_path", "last")
    assert_the_same(RUN, uninterrupted)


def test_what_is_printed_is_how_to_resume(here, uninterrupted, capfd, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    stopped(130, **MOMENTS["in mid-epoch"], name="SIGINT")
    said = capfd.readouterr().err
    assert said.count("press it again to stop at once") == 1
    found = re.search("Ctrl-C stopped .* epoch 1, after step 7: resume it by lit-robust (.*)", caplog.text)
    assert "weights_only" not in caplog.text
    main(found[1].split())
    assert_the_same(RUN, uninterrupted)


def test_it_is_found_by_its_folder_and_stopped_again(here, uninterrupted):
    stopped(143, **MOMENTS["in a validation in mid-epoch"])
    flags = ["--trainer.callbacks.hook=on_train_batch_end", "--trainer.callbacks.epoch=2"]
    with pytest.raises(SystemExit):
        fit("--ckpt_path=runs/tiny", "--trainer.callbacks+=tests.sender.Send", *flags)
    fit("--ckpt_path", "runs/tiny")
    assert_the_same(RUN, uninterrupted)


NO_LAST = ["--trainer.callbacks=[]", "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=e{epoch}"]


def test_what_a_stop_has_saved_is_the_last_one_only_until_the_run_saves_again(here):
    send = ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=on_train_batch_start"]
    with pytest.raises(SystemExit):
        fit(*NO_LAST, *send)
    checkpoints = RUN / "checkpoints"
    assert checkpoints_of(Path("runs"))["last"] == checkpoints / "last.ckpt"
    fit(*NO_LAST, "--ckpt_path", "last")
    assert {"last.ckpt", "eepoch=2.ckpt"} == {path.name for path in checkpoints.iterdir()}
    assert checkpoints_of(Path("runs"))["last"] == checkpoints / "eepoch=2.ckpt"
    fit(*NO_LAST, "--ckpt_path", "last", "--trainer.max_epochs=4")
    assert torch.load(checkpoints / "eepoch=3.ckpt", weights_only=True)["epoch"] == 3


def test_the_last_run_is_found_though_an_earlier_one_was_stopped(here):
    with pytest.raises(SystemExit):
        fit(*NO_LAST, "--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.hook=on_train_batch_start")
    fit(*NO_LAST)
    assert checkpoints_of(Path("runs"))["last"] == Path("runs/tiny/version_1/checkpoints/eepoch=2.ckpt")


# Two ranks.


def fit_on_two_ranks(*runs: list[str]) -> tuple[list[list[int]], str]:
    """Exit codes by rank and run, and what is printed, of fits one after another in one pair of processes."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    Path("tiny.yaml").write_text(TINY)
    Path("more.yaml").write_text(MORE)
    two = ["fit", "-c", "tiny.yaml", "-c", "more.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"]
    Path("runs.json").write_text(json.dumps([[*two, *flags] for flags in runs]))
    started = []
    for rank in ("0", "1"):
        with Path(f"{rank}.txt").open("w") as log:
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            command = [sys.executable, "-m", "tests.sender", "runs.json", f"{rank}.json"]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in started:
            process.wait(timeout=240)
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = Path("0.txt").read_text() + Path("1.txt").read_text()
    assert [process.returncode for process in started] == [0, 0], said
    return [json.loads(Path(f"{rank}.json").read_text()) for rank in "01"], said


def test_a_signal_to_rank_1_stops_both_and_both_go_on_as_if_they_had_not_been_stopped(here):
    first, within = (
        ["--trainer.callbacks+=tests.sender.Send", "--trainer.callbacks.rank=1"]
        + [f"--trainer.callbacks.{name}={value}" for name, value in MOMENTS[moment].items()]
        for moment in ("in the first batch", "in a validation in mid-epoch")
    )
    resume = "--ckpt_path=runs/tiny"
    codes, said = fit_on_two_ranks(["--trainer.logger.name=whole"], first, [resume, *within], [resume])
    assert codes == [[0, 143, 143, 0]] * 2, said
    assert (said.count("SIGTERM stopped the training"), "Traceback" in said) == (2, False)
    whole = Path("runs/whole/version_0")
    assert (RUN / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    mine, theirs = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (RUN, whole))
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "global_step"):
        assert differences(mine[part], theirs[part]) == []


# In Python.


def run_with(tmp_path, *callbacks: Callback, **kwargs: object):
    last = ModelCheckpoint(tmp_path, filename="mine-{step}", save_top_k=-1)
    return trainer(tmp_path, callbacks=[last, *callbacks], enable_checkpointing=True, max_epochs=2, **kwargs)


def test_in_python_the_exception_propagates_and_the_module_can_be_trained_again(tmp_path):
    module = build(PGDAT)
    send = Send("on_validation_batch_start", epoch=0)
    with pytest.raises(Stopped) as stop:
        run_with(tmp_path, send, EMAWeights(0.9)).fit(module, loader(images()), loader(images(8)))
    assert (stop.value.code, stop.value.signum) == (143, signal.SIGTERM)
    assert isinstance(stop.value, SIGTERMException)
    assert module.net.training
    with pytest.warns(UserWarning, match="Checkpoint directory .* exists"):
        run_with(tmp_path).fit(module, loader(images()), loader(images(8)))


@pytest.mark.parametrize("average", [EMAWeights(0.5), EMAWeightAveraging(decay=0.5)], ids=["ours", "Lightning's"])
def test_the_live_weights_are_saved_from_within_a_validation(average, tmp_path):
    live = {}

    class Note(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            live.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    module = build(PGDAT)
    with pytest.raises(Stopped):
        run_with(tmp_path, Note(), average, Send("on_validation_batch_start", epoch=0)).fit(
            module, loader(images()), loader(images(8))
        )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert differences(dict(saved["current_model_state"]), live) == []
    assert differences(dict(saved["state_dict"]), live) != []
    assert differences(dict(module.state_dict()), live) == []


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_validation_batch_start"])
def test_in_the_sanity_check_nothing_is_saved(hook, tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    run = run_with(tmp_path, Send(hook, epoch=0), num_sanity_val_steps=1)
    with pytest.raises(Stopped):
        run.fit(build(PGDAT), loader(images()), loader(images(8)))
    assert list(tmp_path.glob("*.ckpt")) == []
    assert "nothing was saved" in caplog.text


def test_a_run_without_checkpoints_gets_none(tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    run = trainer(tmp_path, callbacks=[Send("on_train_batch_start", epoch=0)], max_epochs=1)
    with pytest.raises(Stopped):
        run.fit(build(PGDAT), loader(images()))
    assert list(tmp_path.rglob("*.ckpt")) == []
    assert "nothing was saved" in caplog.text


def test_a_signal_after_the_last_batch_is_passed_on_when_the_run_is_complete(tmp_path):
    with pytest.raises(Stopped):
        run_with(tmp_path, Send("on_train_end", epoch=2)).fit(build(PGDAT), loader(images()))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["mine-step=3.ckpt", "mine-step=6.ckpt"]
    assert stop_request.signal == 0


@pytest.mark.parametrize(("name", "error"), [("SIGTERM", Stopped), ("SIGINT", SystemExit)])
def test_a_test_ends_at_once(name, error, tmp_path):
    run = trainer(tmp_path, callbacks=[Send("on_test_batch_start", epoch=0, name=name)])
    with pytest.raises(error):
        run.test(build(PGDAT), loader(images()), verbose=False)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    class Twice(Callback):
        def on_train_batch_start(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        run_with(tmp_path, Twice()).fit(build(PGDAT), loader(images()))
    assert isinstance(stop.value.__context__, KeyboardInterrupt)
    assert list(tmp_path.glob("*.ckpt")) == []


def test_workers_outlive_the_ctrl_c_that_a_terminal_sends_to_all_processes(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    to_tensor = v2.Compose([v2.PILToTensor()])
    workers = Workers(FolderImages([(str(tmp_path / "a.png"), 0)], to_tensor), count=1, pin_memory=False)
    batches = workers.decode(iter([[(0, 1.0, 0)]] * 8))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 7


def test_a_users_own_handlers_are_called(tmp_path):
    received = []
    names = ("SIGTERM", "SIGINT")
    before = [signal.signal(signal.Signals[name], lambda signum, frame: received.append(signum)) for name in names]
    try:
        run_with(tmp_path, Send("on_train_batch_start", epoch=0, name="SIGINT")).fit(build(PGDAT), loader(images()))
        with pytest.raises(Stopped):
            run_with(tmp_path / "b", Send("on_train_batch_start", epoch=0)).fit(build(PGDAT), loader(images()))
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(signal.Signals[name], handler)
    assert received == [signal.SIGINT, signal.SIGTERM]


def test_slurms_requeueing_stays(tmp_path, monkeypatch):
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    for name, value in {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", lambda command: 0)
    run_with(tmp_path, Send("on_train_batch_start", epoch=0, batch_idx=1, name="SIGUSR1")).fit(
        build(PGDAT), loader(images())
    )
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists()


def test_a_fit_in_another_thread_installs_nothing(tmp_path):
    thread = threading.Thread(target=lambda: run_with(tmp_path).fit(build(PGDAT), loader(images())))
    thread.start()
    thread.join()
    assert (tmp_path / "mine-step=6.ckpt").exists()


# The command.


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_command_ends_with_130_after_an_interrupt_that_is_not_caught(command, here, capsys):
    hook = {"fit": "on_fit_start", "test": "on_test_batch_start"}[command]
    Path("tiny.yaml").write_text(TINY)
    flags = [
        f"--trainer.callbacks.{key}={value}" for key, value in {"hook": hook, "epoch": 0, "name": "SIGINT"}.items()
    ]
    with pytest.raises(SystemExit) as stop:
        main([command, "-c", "tiny.yaml", "--trainer.callbacks+=tests.sender.Send", *flags])
    assert stop.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
