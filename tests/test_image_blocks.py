"""Long attacks block by block: a killed evaluation goes on, and only what is the same is used again."""

import pickle
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from lit_robust import losses
from lit_robust.attacks import BPDA, PGD, AutoAttack, MultiTargetedPGD, Square
from lit_robust.attacks.autoattack_findings import Findings, gathering
from lit_robust.attacks.base import Attack
from lit_robust.measures.accuracy import surviving
from lit_robust.measures.attack_checks import check_names
from lit_robust.measures.correct import is_correct
from lit_robust.measures.image_blocks import Blocks, fingerprint, identity
from lit_robust.seeds import seed
from tests.tiny import TinyNet, images

CPU = torch.device("cpu")
#: The number of images of each call of ``Noise``, and the calls in which it is killed.
CALLS: list[int] = []
KILLED_AT: set[int] = set()


@dataclass(frozen=True)
class Noise(Attack):
    """Draws as many numbers as there are images, so a result depends on what was drawn before."""

    eps: float = 0.9
    batch_size: int = 4
    is_long = True

    def __call__(self, net, x, y):
        if len(CALLS) in KILLED_AT:
            raise KeyboardInterrupt
        CALLS.append(len(x))
        return (x + self.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()
    KILLED_AT.clear()


@pytest.fixture
def quick(monkeypatch):
    """Few iterations for AutoAttack's first attacks."""
    kind = pytest.importorskip("pyautoattack").autoattack.APGDAttack
    build = kind.__init__
    few = {"n_iter": 10, "eot_iter": 1}
    monkeypatch.setattr(kind, "__init__", lambda *args, **kwargs: build(*args, **kwargs | few))


def trained():
    """A net that noise breaks on some images."""
    net, batch = TinyNet().eval(), images(64)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()
    return net.eval()


def survivors(attack, folder=None, net=None, batch=None, number=0):
    seed(CPU, "evaluate", number, 0)
    return surviving(net or trained(), {"long": attack}, batch or images(14), blocks=folder and Blocks(folder))["long"]


def test_a_killed_evaluation_goes_on_and_agrees_for_every_image(tmp_path):
    net, batch = TinyNet().eval(), images(14)
    batch = batch._replace(y=net(batch.x).argmax(1))
    whole = survivors(Noise(), None, net, batch)
    assert CALLS == [4, 4, 4, 2]
    assert 0 < whole.sum() < len(whole)
    CALLS.clear()
    KILLED_AT.add(2)
    with pytest.raises(KeyboardInterrupt):
        survivors(Noise(), tmp_path, net, batch)
    assert len(list(tmp_path.iterdir())) == 2
    KILLED_AT.clear()
    for _ in range(2):
        assert torch.equal(survivors(Noise(), tmp_path, net, batch), whole)
        assert CALLS == [4, 4, 4, 2]


@pytest.mark.usefixtures("quick")
def test_autoattack_in_blocks_is_autoattack_on_each_block(tmp_path):
    net, batch = trained(), images(6)
    attack = AutoAttack(0.18, version="rand", batch_size=4)
    parts = [attack(net, x, y) for x, y in zip(batch.x.split(4), batch.y.split(4), strict=True)]
    for _ in range(2):
        assert torch.equal(Blocks(tmp_path).images(attack, net, batch), torch.cat(parts))
    expected = is_correct(net, torch.cat(parts), batch.y)
    assert torch.equal(survivors(attack, tmp_path, net, batch), expected)
    assert 0 < expected.sum() < len(expected)


@pytest.mark.usefixtures("quick")
def test_a_block_that_is_read_tells_what_its_attack_has_found(tmp_path, recwarn):
    net, told = nn.Sequential(trained(), nn.Softmax(dim=1)).eval(), []
    for _ in range(2):
        with gathering(Findings()) as findings:
            survivors(AutoAttack(0.18, version="rand", batch_size=4), tmp_path, net, images(6))
        told.append(findings.sentences())
    assert told[0] == told[1]
    assert any(" 6 of 6 images: " in sentence and "probabilities" in sentence for sentence in told[0])
    assert not recwarn.list


def test_only_the_same_net_attack_images_seed_and_mode_are_used_again(tmp_path, monkeypatch):
    net, batch = trained(), images(4)

    def runs_anew(attack=None, number=0, batch=batch):
        before = len(CALLS)
        survivors(attack or Noise(), tmp_path, net, batch, number)
        return len(CALLS) > before

    assert runs_anew()
    assert not runs_anew()
    assert runs_anew(Noise(0.5))
    assert runs_anew(number=1)
    assert runs_anew(batch=batch._replace(x=batch.x.roll(1, 0)))
    assert runs_anew(batch=batch._replace(y=batch.y.roll(1, 0)))
    net.body[1].momentum = 0.0
    assert runs_anew()
    net.body[1].train()
    assert runs_anew()
    net.eval()
    net.body[1].eps = 1e-3
    assert runs_anew()
    net.head.bias.data[0] += 1e-6
    assert runs_anew()
    monkeypatch.setattr(Noise, "package", "another")
    assert runs_anew()


class Code:
    """Would make a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def changed(path, **parts):
    torch.save(torch.load(path, weights_only=True) | parts, path)


@pytest.mark.parametrize(
    "break_file",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 2000),
        lambda path: path.write_bytes(pickle.dumps(Code(path.with_suffix(".code")))),
        lambda path: torch.save(Code(path.with_suffix(".code")), path),
        lambda path: torch.save([1], path),
        lambda path: torch.save({}, path),
        partial(changed, key={}),
        partial(changed, survived=torch.zeros(5, dtype=torch.bool)),
        partial(changed, survived=torch.zeros(4)),
        partial(changed, survived=[True] * 4),
        partial(changed, x_adv=torch.zeros(4, 3, 8, 7)),
        partial(changed, x_adv=torch.zeros(4, 3, 8, 8, dtype=torch.float64)),
        partial(changed, x_adv=torch.full((4, 3, 8, 8), torch.nan)),
        partial(changed, more=1),
        partial(changed, findings={"random": "many"}),
        partial(changed, findings=[]),
    ],
)
def test_a_broken_or_foreign_file_is_computed_again_and_never_run(break_file, tmp_path):
    whole = survivors(Noise(), tmp_path, batch=images(4))
    (path,) = tmp_path.glob("*.pt")
    kept = torch.load(path, weights_only=True)
    break_file(path)
    assert torch.equal(survivors(Noise(), tmp_path, batch=images(4)), whole)
    assert CALLS == [4, 4]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert torch.equal(torch.load(path, weights_only=True)["x_adv"], kept["x_adv"])


def test_a_file_under_the_name_of_another_is_not_used(tmp_path):
    survivors(Noise(), tmp_path, batch=images(4))
    (path,) = tmp_path.glob("*.pt")
    survivors(Noise(), tmp_path, batch=images(4, seed=1))
    (other,) = set(tmp_path.glob("*.pt")) - {path}
    path.write_bytes(other.read_bytes())
    survivors(Noise(), tmp_path, batch=images(4))
    assert CALLS == [4, 4, 4]


def test_a_finished_test_keeps_results_without_images(tmp_path):
    blocks, net, batch = Blocks(tmp_path), trained(), images(64)
    attack = Noise(batch_size=64)
    survived, x_adv = blocks.survivors(attack, net, batch), blocks.images(attack, net, batch)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 4 * x_adv.numel()
    blocks.drop_images()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4000
    assert torch.equal(Blocks(tmp_path).survivors(attack, net, batch), survived)
    assert len(CALLS) == 1
    again = Blocks(tmp_path)
    assert torch.equal(again.images(attack, net, batch), x_adv)  # which needs the images
    assert len(CALLS) == 2
    again.forget()
    assert list(tmp_path.iterdir()) == []


def test_padding_is_not_attacked_and_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = images(6)
    batch.weight[[1, 5]] = 0
    survivors(Noise(), batch=batch)
    assert CALLS == [4]
    survivors(Noise(), batch=batch._replace(weight=torch.zeros(6)))
    assert CALLS == [4]
    assert list(tmp_path.iterdir()) == []


def test_attacks_of_a_thousand_passes_are_long():
    short = [PGD(steps=100), MultiTargetedPGD(steps=20), Square(queries=500), BPDA(PGD(), "0")]
    long = [
        AutoAttack(),
        PGD(steps=100, restarts=10),
        PGD(steps=50, eot=20),
        MultiTargetedPGD(steps=20, restarts=6),
        Square(),
        BPDA(AutoAttack(), "0"),
    ]
    assert [attack.is_long for attack in short] == [False] * 4
    assert [attack.is_long for attack in long] == [True] * 6


def test_a_long_attack_on_one_block_draws_what_a_short_one_draws():
    net, batch, attack = trained(), images(), PGD(0.1, 0.02, steps=8, init="uniform")
    seed(CPU, "evaluate", 0, 0)
    expected = attack(net, batch.x, batch.y)
    seed(CPU, "evaluate", 0, 0)
    assert torch.equal(Blocks().images(attack, net, batch), expected)


def test_the_text_of_an_attack_has_no_address_and_tells_functions_apart():
    def free(x):
        return no_calls, x

    texts = [identity(PGD(loss=loss)) for loss in (losses.ce, losses.margin)]
    assert not any(" at 0x" in text for text in texts)
    assert len({*texts}) == 2
    assert identity(PGD(eps="8/255")) != identity(PGD(eps="4/255"))
    assert identity(MultiTargetedPGD()) != identity(PGD(loss=losses.margin))
    one, two = lambda x: x, lambda x: -x
    assert identity(one) != identity(two)
    nets = [TinyNet(seed=number) for number in (0, 1)]
    assert len({identity(BPDA(PGD(), "", substitute=net)) for net in nets}) == 2
    assert identity({"a": PGD()}) == identity({"a": PGD()})


# bf16.


class Rolled(nn.Module):
    """Sees an image as the next class: if it is not made of whole grey levels, under autocast; or without autocast."""

    def __init__(self, net, under_autocast):
        super().__init__()
        self.net, self.under_autocast = net, under_autocast

    def forward(self, x):
        changed = (255 * x - (255 * x).round()).abs().amax(dim=(1, 2, 3), keepdim=True).flatten(1) > 1e-3
        autocast = torch.is_autocast_enabled("cpu")
        wrong = changed & autocast if self.under_autocast else changed.new_tensor(not autocast)
        logits = self.net(x).float()
        return torch.where(wrong, logits.roll(1, dims=1), logits)


def whole_levels():
    """A net, and images of whole grey levels that it classifies correctly."""
    net, batch = trained(), images(6)
    batch = batch._replace(x=(255 * batch.x).round() / 255)
    return net, batch._replace(y=net(batch.x).argmax(1))


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:AutoAttack.*the gradient is exactly 0")
def test_a_break_in_bf16_counts_only_if_float32_confirms_it(caplog):
    net, batch = whole_levels()
    attack = AutoAttack(1e-3, version="rand", precision="bf16")
    with caplog.at_level("INFO", logger="lit_robust"):
        x_adv = attack(Rolled(net, under_autocast=True).eval(), batch.x, batch.y)
    assert torch.equal(x_adv, batch.x)
    # The second attack got the images that the first one had not broken.
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "AutoAttack: 100.00 % robust after apgd-ce",
        "AutoAttack: 100.00 % robust after apgd-dlr",
    ]


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:AutoAttack.*the gradient is exactly 0")
def test_an_image_that_float32_misclassifies_is_not_attacked_in_bf16():
    net, batch = whole_levels()
    attack = AutoAttack(0.3, version="rand", precision="bf16")
    assert not torch.equal(attack(net, batch.x, batch.y), batch.x)
    assert torch.equal(attack(Rolled(net, under_autocast=False).eval(), batch.x, batch.y), batch.x)


@pytest.mark.usefixtures("quick")
def test_bf16_sees_the_net_under_autocast_and_finds_what_is_broken():
    net, batch = trained(), images(6)
    types = []
    net.head.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    found = {}
    for precision in ("float32", "bf16"):
        types.clear()
        attack = AutoAttack(0.3, version="rand", precision=precision)
        with torch.autocast("cpu", enabled=False):
            found[precision] = is_correct(net, attack(net, batch.x, batch.y), batch.y)
        assert ({*types} == {torch.float32}) is (precision == "float32")
    assert torch.bfloat16 in types
    assert not found["float32"].all()
    assert torch.equal(found["float32"], found["bf16"])


@pytest.mark.parametrize("attack", [AutoAttack(precision="bf16"), BPDA(AutoAttack(precision="bf16"), "0")])
def test_a_row_in_bf16_is_called_so(attack):
    with pytest.raises(ValueError, match='"autoattack_bf16"'):
        check_names("test_attacks", {"autoattack": attack})
    check_names("test_attacks", {"autoattack": AutoAttack(), "autoattack_bf16": attack})


def test_nets_with_equal_weights_and_another_number_in_a_layer_share_no_block():
    class Cooled(TinyNet):
        temperature = 1.0

        def forward(self, x):
            return super().forward(x) / self.temperature

    one, other = Cooled().eval(), Cooled().eval()
    assert fingerprint(one) == fingerprint(Cooled().eval())
    other.temperature = 100.0
    assert repr(one) == repr(other)
    assert fingerprint(one) != fingerprint(other)
