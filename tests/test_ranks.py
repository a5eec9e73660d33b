"""Two ranks train one net, on every image once, and measure what one process measures."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lit_robust import losses
from lit_robust.defenses import PGDAT, Natural
from lit_robust.measures.accuracy import surviving
from lit_robust.ranks import float_buffers, sums_over_ranks
from tests import ranks
from tests.methods import METHODS, build
from tests.tiny import images, trainer

REPOSITORY = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """The results of both ranks: name of the scenario -> (rank 0's result, rank 1's)."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {  # as torchrun sets them
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    workers = []
    for rank in ("0", "1"):
        with (folder / f"{rank}.txt").open("w") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.ranks", str(folder)],
                    cwd=REPOSITORY,
                    env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [worker.wait(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert codes == [0, 0], (folder / "0.txt").read_text() + (folder / "1.txt").read_text()
    zero, one = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return {name: (zero[name], one[name]) for name in zero} | {"folder": folder}


def of(findings, name):
    """Both ranks' results, or the error."""
    for finding in findings[name]:
        assert "error" not in finding, finding["error"]
    return findings[name]


def assert_equal(mine, theirs):
    """Every tensor to the bit; integer buffers count a rank's own batches."""
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key].is_floating_point() and not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("name", METHODS)
def test_both_ranks_end_with_the_same_weights_and_buffers(findings, name):
    zero, one = of(findings, name)
    assert_equal(zero["weights"], one["weights"])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_two_ranks_resumed_between_epochs_equals_the_uninterrupted_one(findings, name):
    for finding in of(findings, name):
        assert_equal(finding["resumed"], finding["weights"])


@pytest.mark.parametrize("name", METHODS)
def test_every_image_counts_once_per_epoch_over_both_ranks_and_padding_never(findings, name):
    seen = [finding["seen"] for finding in of(findings, name)]
    for epoch in range(2):
        assert len(seen[0][epoch]) == len(seen[1][epoch]) == 11
        pairs = seen[0][epoch] + seen[1][epoch]
        assert sorted(index for index, weight in pairs if weight == 1) == list(range(ranks.TRAIN))
        assert sum(weight for _, weight in pairs) == ranks.TRAIN


def test_state_of_a_rank_goes_through_a_checkpoint_rank_by_rank(findings):
    zero, one = of(findings, "state of a rank")
    for finding in (zero, one):
        assert_equal(finding["resumed"], finding["weights"])
        assert_equal(finding["resumed state"], finding["state"])
    assert not torch.equal(zero["state"]["drift"], one["state"]["drift"])


@pytest.mark.parametrize("name", ranks.BOUND_TO_RANKS + ranks.FREE_OF_RANKS)
def test_a_memory_that_another_number_of_ranks_cannot_use_is_told(name, findings):
    zero, _ = of(findings, "from one rank")  # only rank 0 warns
    for told, before, now in (
        (zero["told"][name], 1, 2),
        (ranks.told_on_resuming(name, findings["folder"] / f"{name}.ckpt"), 2, 1),
    ):
        says = f"the checkpoint holds delta of {before} ranks, .* has {now}: .* on {before} ranks "
        assert [bool(re.match(says, one)) for one in told] == [True] * (name in ranks.BOUND_TO_RANKS), told


def test_an_epoch_that_another_number_of_ranks_ends_is_told_and_its_metrics_go_on(findings):
    of(findings, "metrics after a stop")
    path, module = findings["folder"] / "metrics.ckpt", build(Natural, net=ranks.linear())
    (zero, one) = torch.load(path, weights_only=True)["lit_robust"]["metrics"]
    assert float(zero["loss"][1] + one["loss"][1]) == 16  # two batches of four images on each rank
    begun = {}

    class Begin(Callback):
        def on_train_start(self, trainer, pl_module):
            begun.update(pl_module.metrics.sums)

    with pytest.warns(UserWarning, match=r" 2 ranks, .* has 1: "):
        ranks.fit(module, ranks.Data(), Begin(), max_epochs=1, ckpt_path=path)
    assert_equal(begun, {name: zero[name] + one[name] for name in zero})


def test_a_test_of_another_number_of_ranks_says_nothing_of_ranks(findings, tmp_path, recwarn):
    of(findings, "FreeAT")
    make = METHODS["FreeAT"]
    run = trainer(tmp_path)
    for evaluate in (run.test, run.validate):
        data = ranks.Validated()
        evaluate(build(make.cls, **make.arguments), data, ckpt_path=findings["folder"] / "FreeAT.ckpt", verbose=False)
    assert [str(one.message) for one in recwarn if "ranks" in str(one.message)] == []


def test_the_eps_of_an_image_is_the_same_on_both_ranks_after_a_resume_and_in_one_process(findings, tmp_path):
    zero, one = of(findings, "eps by image")
    assert_equal(zero["end"], one["end"])
    for finding in (zero, one):
        assert_equal(finding["resumed"], finding["end"])
    alone = ranks.eps_by_image(tmp_path)["end"]
    torch.testing.assert_close(zero["end"], alone, rtol=0, atol=1e-5)
    assert len(alone["eps"].unique()) > 2  # else it could not tell which rank has seen an image


def test_averages_are_equal_on_both_ranks_and_after_a_resume(findings):
    zero, one = of(findings, "averages")
    assert_equal(zero["weights"], one["weights"])
    for finding in (zero, one):
        assert_equal(finding["resumed"], finding["weights"])


def test_the_buffers_of_a_rank_are_float_ones_of_its_checkpoint():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    net.register_buffer("mask", torch.tensor(float("-inf")), persistent=False)
    assert float_buffers(net).keys() == {"0.running_mean", "0.running_var"}


@pytest.mark.parametrize("averaging", [False, True])
def test_a_run_resumed_within_an_epoch_continues_with_each_ranks_own_statistics(averaging, findings):
    zero, one = (finding[averaging] for finding in of(findings, "statistics"))
    assert_equal(zero["end"], one["end"])
    mean = "body.1.running_mean"
    assert not torch.equal(zero["trained"][0][mean], one["trained"][0][mean])  # else it could not tell
    for finding in (zero, one):
        for batches, resumed in enumerate(finding["resumed"], start=1):
            assert_equal(resumed["end"], finding["end"])
            for before, after in zip(finding["trained"][batches:], resumed["trained"], strict=True):
                assert_equal(after, before)


@pytest.mark.parametrize("averaging", [False, True])
def test_ranks_validate_one_net_within_an_epoch(averaging, findings):
    zero, one = (finding[averaging] for finding in of(findings, "statistics"))
    assert len(zero["validated"]) == len(one["validated"]) == 2
    for mine, theirs in zip(zero["validated"], one["validated"], strict=True):
        assert_equal(mine, theirs)
    for finding in (zero, one):
        for resumed in finding["resumed"]:
            for before, after in zip(finding["validated"], resumed["validated"], strict=True):
                assert_equal(after, before)
    assert averaging or statistics_are_means(zero["validated"][0], zero["trained"][1], one["trained"][1])


def statistics_are_means(found, *ranks):
    return all(torch.allclose(value, sum(rank[name] for rank in ranks) / 2) for name, value in found.items())


@pytest.mark.parametrize("averaging", [False, True])
def test_a_checkpoint_without_the_statistics_of_each_rank_resumes_with_the_first_ranks(averaging, findings):
    zero, one = (finding[averaging] for finding in of(findings, "statistics"))
    assert_equal(zero["older"]["end"], one["older"]["end"])
    for finding, goes_on in ((zero, True), (one, False)):
        now, before = finding["older"]["trained"][0], finding["trained"][1]
        assert torch.equal(now["body.1.running_mean"], before["body.1.running_mean"]) == goes_on


def test_one_rank_goes_on_with_the_statistics_of_the_first_of_two(findings):
    zero, _ = (finding[False] for finding in of(findings, "statistics"))
    begun = {}

    class Begin(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            begun.setdefault("statistics", ranks.statistics_of(pl_module))

    path = findings["folder"] / "statistics1False.ckpt"
    with pytest.warns(UserWarning, match=r" 2 ranks, .* has 1: "):
        ranks.fit(build(PGDAT), ranks.Validated(), Begin(), max_epochs=1, ckpt_path=path)
    assert_equal(begun["statistics"], zero["trained"][0])


@pytest.mark.parametrize("name", ["unequal weights", "perturbed weights"])
def test_two_ranks_with_half_a_batch_each_train_as_one_process_with_the_whole_batch(name, findings, tmp_path):
    alone = ranks.SCENARIOS[name](tmp_path)
    for finding in of(findings, name):
        torch.testing.assert_close(finding["weights"], alone["weights"], rtol=0, atol=1e-6)
        assert finding["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_the_loss_curve_of_two_ranks_is_that_of_one_process_with_the_whole_batches(findings, tmp_path):
    alone = ranks.image_by_image(tmp_path)
    for finding in of(findings, "image by image"):
        assert finding.keys() == alone.keys()
        for name, run in alone.items():
            assert finding[name]["losses"] == pytest.approx(run["losses"], rel=1e-5), name
            torch.testing.assert_close(finding[name]["weights"], run["weights"], rtol=0, atol=1e-5, msg=name)


def test_training_metrics_are_means_over_both_ranks(findings):
    batch = images(ranks.TRAIN)
    logits = ranks.linear()((255 * batch.x).byte() / 255)
    for finding in of(findings, "metrics"):
        assert finding["loss"] == pytest.approx(losses.ce(logits, batch.y).mean().item(), rel=1e-5)


def test_training_metrics_of_an_epoch_that_was_stopped_are_those_of_both_ranks_whole_epoch(findings):
    for finding in of(findings, "metrics after a stop"):
        assert finding["resumed"] == finding["losses"]


@pytest.fixture(scope="module")
def coresets_of_one_rank(tmp_path_factory):
    return ranks.coreset(tmp_path_factory.mktemp("coreset"))


def assert_same_coreset(mine, theirs):
    assert torch.equal(mine[0], theirs[0])
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-3, atol=1e-3)
    assert mine[2] == theirs[2]


@pytest.mark.parametrize("selector", range(5))
def test_two_ranks_select_from_augmented_images_what_one_rank_selects(selector, findings, coresets_of_one_rank):
    name = list(coresets_of_one_rank)[selector]
    for finding in of(findings, "coreset"):
        assert_same_coreset(finding[name]["chosen"][0], coresets_of_one_rank[name]["chosen"][0])


@pytest.mark.parametrize("selector", range(5))
def test_two_ranks_share_a_coreset_and_resume_with_it(selector, findings, coresets_of_one_rank):
    name = list(coresets_of_one_rank)[selector]
    zero, one = (finding[name] for finding in of(findings, "coreset"))
    assert_equal(zero["end"], one["end"])
    for finding in (zero, one):
        for resumed in finding["resumed"]:
            assert_equal(resumed, finding["end"])
    for epoch, (indices, weights, _) in zero["chosen"].items():
        pairs = [(index, weight) for seen in (zero, one) for index, weight in seen["seen"][epoch] if weight]
        assert sorted(pairs) == list(zip(indices.tolist(), weights.tolist(), strict=True))


def test_two_ranks_train_and_reselect_as_one_process_with_the_whole_batches(findings, tmp_path):
    alone = ranks.coreset_of_a_trained_net(tmp_path)
    for finding in of(findings, "coreset of a trained net"):
        assert finding["chosen"].keys() == {0, 1, 2}
        for epoch, chosen in finding["chosen"].items():
            assert_same_coreset(chosen, alone["chosen"][epoch])
        torch.testing.assert_close(finding["weights"], alone["weights"], rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended")  # the sampler is unknown to it
def test_ranks_share_the_draws_of_a_coreset_sampler_and_resume_within_an_epoch(findings, tmp_path):
    zero, one = of(findings, "coreset of a sampler")
    alone = ranks.coreset_of_a_sampler(tmp_path)
    assert_same_coreset(zero["chosen"][0], alone["chosen"][0])
    assert (alone["length"], zero["length"], one["length"]) == (13, 7, 7)
    for epoch in range(2):
        assert_same_coreset(zero["chosen"][epoch], one["chosen"][epoch])
        assert len(zero["places"][epoch]) == len(one["places"][epoch]) == 7
        both = [place for pair in zip(zero["places"][epoch], one["places"][epoch], strict=True) for place in pair]
        assert both[13] == both[0]  # 13 samples, and one more for an equal share
        assert set(both) <= set(zero["chosen"][epoch][0].tolist())
    first = [place for pair in zip(zero["places"][0], one["places"][0], strict=True) for place in pair]
    assert first[:13] == alone["places"][0]
    for finding, batch in ((zero, 2), (one, 2), (alone, 4)):
        assert finding["resumed"][0] == finding["places"][0][2 * batch :]
        assert finding["resumed"].keys() == {0, 1}


def test_ranks_with_unequal_numbers_of_blocks_select_what_one_rank_selects(findings, tmp_path):
    alone = ranks.coreset_of_blocks(tmp_path)
    for finding in of(findings, "coreset of blocks"):
        assert finding.keys() == alone.keys()
        for name, chosen in alone.items():
            assert_same_coreset(finding[name], chosen)


def test_both_ranks_switch_and_stop_together_by_the_mean_of_their_losses(findings):
    for finding in of(findings, "delayed start"):
        assert finding["losses"] == pytest.approx([0.8, 0.65, 0.45])
        assert finding["switch"] == 3
        assert finding["epochs"] == {0: False, 1: False, 2: False, 3: True, 4: True, 5: True}
        assert finding["end"] == 6


def test_the_generalisation_gap_counts_every_image_once(findings):
    zero, one = of(findings, "gap")
    assert zero["logged"]["val/gap/robust"] == one["logged"]["val/gap/robust"]
    net = build(PGDAT).net.eval()
    net.load_state_dict({name.removeprefix("net."): value for name, value in zero["weights"].items()})
    for name, n, seed in (("val/acc/robust_train", ranks.TRAIN, 0), ("val/acc/robust", ranks.TEST, 1)):
        batch = images(n, seed)
        batch = batch._replace(x=(255 * batch.x).byte() / 255)
        share = surviving(net, {"robust": ranks.EXACT}, batch)["robust"].float().mean().item()
        assert zero["logged"][name] == pytest.approx(share)


def test_no_warning_asks_to_reduce_what_is_reduced(findings):
    zero, _ = of(findings, "warnings")  # only rank 0 warns
    assert [warning for warning in zero["warnings"] if "sync_dist" in warning] == []


def test_no_step_of_an_attack_waits_for_other_ranks(findings):
    for found in of(findings, "sums of attacks"):
        assert found == {"1": [[2], [2]], "4": [[2], [2]]}


#: How many numbers a batch sums over ranks, one after the other, as the README says under "What more GPUs cost"; every
#: update's loss sums two.
LOSS = (2,)
WEIGHTS = sum(weight.numel() for weight in build(PGDAT).net.parameters() if weight.ndim > 1)
SUMS = {
    **{name: {LOSS} for name in METHODS},
    **{name: {(2, *LOSS)} for name in METHODS if name.startswith(("GradAlign", "ELLEA"))},
    **{name: {(4, *LOSS)} for name in METHODS if name.startswith("AAER")},
    **{name: {(*LOSS, *LOSS)} for name in METHODS if name.startswith("FreeAT")},  # two updates
    **{name: {(*LOSS, WEIGHTS, *LOSS)} for name in METHODS if "AWP" in name},
    "SATR3": {(1, *LOSS)},
    "NuAT-H": {LOSS, (2, *LOSS)},  # its first batch has no clean loss yet
    "NuAT-H by the second step's gain": {(2, *LOSS)},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_sums_over_ranks_what_the_readme_lists(name, findings):
    for finding in of(findings, name):
        assert {tuple(sizes) for sizes in finding["sums"]} == SUMS[name]


def test_tensors_of_one_dtype_are_summed_over_ranks_at_once_and_keep_their_places_and_shapes(findings):
    zero, one = of(findings, "summed")
    for finding in (zero, one):
        assert finding["sizes"] == [120 + 120 + 1 + 60, 60]
        for total, mine, theirs in zip(finding["totals"], zero["tensors"], one["tensors"], strict=True):
            assert total.dtype == mine.dtype
            assert torch.equal(total, mine + theirs)


def test_on_one_rank_a_sum_over_ranks_is_the_tensor_itself_without_its_graph():
    tensor = torch.ones(2, requires_grad=True)
    (total,) = sums_over_ranks([tensor])
    assert total.data_ptr() == tensor.data_ptr()
    assert not total.requires_grad


def test_evaluation_counts_every_image_once_and_finds_what_one_process_finds(findings, tmp_path):
    zero, one = of(findings, "evaluation")
    assert zero["results"] == one["results"]
    assert {accuracy.n for accuracy in zero["results"].values()} == {ranks.TEST}
    alone = ranks.under_attack()
    alone.load_state_dict(zero["weights"])
    trainer(tmp_path).test(alone, ranks.Data(), verbose=False)
    assert alone.test_results["these weights"] == zero["results"]
    assert len({accuracy.value for accuracy in zero["results"].values()}) > 1  # else it could not tell
    assert (zero["probed"], one["probed"], zero["alarms"]) == (ranks.TEST, ranks.TEST, one["alarms"])


@pytest.mark.parametrize("name", ["test", "killed test"])
def test_two_ranks_one_rank_and_a_killed_test_agree_for_every_image(name, findings, tmp_path):
    zero, one = of(findings, name)
    whole, killed = ranks.in_blocks(tmp_path), ranks.killed_test(tmp_path)
    assert sorted(whole["found"]) == list(range(ranks.TEST))
    assert zero["found"] | one["found"] == whole["found"]
    assert not zero["found"].keys() & one["found"].keys()
    for column in range(4):  # clean, long, short, worst: else it could not tell
        assert len({bits[column] for bits in whole["found"].values()}) == 2
    for other in (zero, one, killed):
        assert other["results"] == whole["results"]
        assert other["alarms"] == whole["alarms"]
        assert other["probed"] == whole["probed"] == 6
    assert killed["found"] == whole["found"]
    # No block is attacked twice: 3 + 3 + 2 of at most 2 images each.
    assert zero["attacked"] + one["attacked"] == killed["attacked"] == whole["attacked"] == ranks.TEST
    assert {finding["files"] for finding in (one, killed, whole)} == {8}


@pytest.mark.parametrize("name", ["autoattack", "killed autoattack"])
def test_autoattack_on_two_ranks_on_one_rank_and_killed_agrees_for_every_image(name, findings, tmp_path):
    pytest.importorskip("pyautoattack")
    zero, one = of(findings, name)
    whole, killed = ranks.autoattack(tmp_path), ranks.killed_autoattack(tmp_path)
    assert sorted(whole["found"]) == list(range(24))
    assert {clean - left for clean, left in whole["found"].values()} == {0, 1}  # else it could not tell
    assert {left for _, left in whole["found"].values()} == {False, True}
    assert zero["found"] | one["found"] == killed["found"] == whole["found"]
    assert not zero["found"].keys() & one["found"].keys()
    for other in (zero, one, killed):
        assert other["results"] == whole["results"]
    for crafted in (zero["crafted"] | one["crafted"], killed["crafted"]):
        assert crafted.keys() == whole["crafted"].keys()
        assert all(torch.equal(crafted[image], found) for image, found in whole["crafted"].items())
    assert not zero["crafted"].keys() & one["crafted"].keys()
    assert len(whole["crafted"]) == 24
    # A sentence about all images, which the resumed test read from its blocks in part, by rank 0.
    assert len(whole["told"]) == 1
    assert re.search(r" [1-9]\d? of 24 images: .* gradient ", whole["told"][0])
    assert (zero["told"], one["told"], killed["told"]) == (whole["told"], [], whole["told"])
