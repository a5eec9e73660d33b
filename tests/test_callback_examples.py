import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.attacks import PGD, Attack
from lit_robust.callbacks import examples
from lit_robust.callbacks.examples import AdversarialExamples
from lit_robust.measures.accuracy import describe
from lit_robust.measures.attacked_examples import craft, spread
from lit_robust.measures.pictures import Examples, draw
from tests import tiny


@dataclass(frozen=True)
class Brighten(Attack):
    """Finds the brightest image in its ball, from a random start."""

    eps: float = 8 / 255
    targeted: bool = False
    share: float = 0.2
    name: str | None = None

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert not any(module.training for module in net.modules())
        torch.rand_like(x)
        return (x + self.eps).clamp(0, 1)


class Threshold(nn.Module):
    """Two classes: dark and bright."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        brightness = self.scale * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-brightness, brightness], dim=1)


class Plain(LightningModule):
    """An ordinary module: automatic optimization, no attack, no Batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Threshold()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def loader(shape: tuple[int, ...] = (1, 4, 4)) -> DataLoader[Any]:
    x = torch.linspace(0.1, 0.9, 6).view(6, *(1 for _ in shape)).expand(6, *shape).contiguous()
    return DataLoader(TensorDataset(x, (x.flatten(1)[:, 0] > 0.5).long()), batch_size=3)


def trainer(folder: Path, callback: AdversarialExamples, **options: Any) -> Trainer:
    return tiny.trainer(folder, callbacks=[callback], **{"max_epochs": 1, "limit_train_batches": 1, **options})


@pytest.fixture(autouse=True)
def _few_workers_are_fine():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch deprecates what Lightning still calls
        yield


def drawn(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*.png"))


def opinions(*confidence_of_class_1: float) -> Tensor:
    second = torch.tensor(confidence_of_class_1)
    return torch.stack([1 - second, second], dim=1)


class TestWhenItDraws:
    def test_at_validation_and_at_test_on_a_module_that_is_no_defense(self, tmp_path: Path):
        runner, module = (
            trainer(tmp_path, AdversarialExamples(Brighten(), num_images=2), max_epochs=2),
            Plain(),
        )
        runner.fit(module, loader(), loader())
        assert drawn(tmp_path / "examples") == ["val-epoch=0-step=1.png", "val-epoch=1-step=2.png"]
        runner.test(module, loader(), verbose=False)
        assert "test-these weights.png" in drawn(tmp_path / "examples")
        height, width, _ = imread(tmp_path / "examples" / "test-these weights.png").shape
        assert 800 < width < 900
        assert 550 < height < 750

    def test_in_every_n_th_epoch_and_whenever_validation_is_asked_for(self, tmp_path: Path):
        callback = AdversarialExamples(Brighten(), every_n_epochs=2, dirpath=str(tmp_path / "here"))
        runner, module = trainer(tmp_path, callback, max_epochs=4), Plain()
        runner.fit(module, loader(), loader())
        assert drawn(tmp_path / "here") == ["val-epoch=1-step=2.png", "val-epoch=3-step=4.png"]
        trainer(tmp_path, callback).validate(module, loader(), verbose=False)
        assert "val-epoch=0-step=0.png" in drawn(tmp_path / "here")

    def test_not_in_the_sanity_check(self, tmp_path: Path):
        class Looks(Plain):
            def on_train_start(self) -> None:
                assert drawn(tmp_path) == []

        trainer(tmp_path, AdversarialExamples(Brighten()), num_sanity_val_steps=1).fit(Looks(), loader(), loader())
        assert drawn(tmp_path) == ["val-epoch=0-step=1.png"]

    def test_not_without_validation(self, tmp_path: Path):
        class NoValidation(LightningModule):
            training_step = Plain.training_step
            configure_optimizers = Plain.configure_optimizers

            def __init__(self) -> None:
                super().__init__()
                self.net = Threshold()

        trainer(tmp_path, AdversarialExamples(Brighten())).fit(NoValidation(), loader())
        assert drawn(tmp_path) == []

    def test_with_a_real_attack_inside_inference_mode(self, tmp_path: Path):
        runner = trainer(tmp_path, AdversarialExamples(PGD(eps=0.1, steps=2)), inference_mode=True)
        runner.test(Plain(), loader(), verbose=False)
        assert drawn(tmp_path) == ["test-these weights.png"]

    def test_on_rank_zero_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
        trainer(tmp_path, AdversarialExamples(Brighten())).validate(Plain(), loader(), verbose=False)
        assert drawn(tmp_path) == []

    def test_wandb_gets_the_picture(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("WANDB_SILENT", "true")
        logger = WandbLogger(offline=True, save_dir=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what W&B says about itself differs from release to release
            trainer(tmp_path, AdversarialExamples(Brighten()), logger=logger).fit(Plain(), loader(), loader())
            logger.experiment.finish()
        (media,) = tmp_path.glob("wandb/offline-run-*/files/media/images/val/examples*.png")
        (picture,) = tmp_path.glob("lightning_logs/*/examples/val-epoch=0-step=1.png")  # in the run's own folder
        assert media.read_bytes() == picture.read_bytes()

    def test_pictures_reach_tensorboard(self, tmp_path):
        class Board(TensorBoardLogger):
            """A logger without the package."""

            name, version, save_dir, log_dir = "board", 0, str(tmp_path), str(tmp_path / "board")
            figures: ClassVar[list[Any]] = []

            def __init__(self):
                Logger.__init__(self)

            @property
            def experiment(self):
                return SimpleNamespace(add_figure=lambda *args: self.figures.append(args))

            def log_metrics(self, *args, **kwargs): ...

            log_hyperparams = log_graph = save = finalize = log_metrics

        board = Board()
        one = trainer(tmp_path, AdversarialExamples(Brighten()), logger=board, max_epochs=2)
        one.fit(Plain(), loader(), loader())
        assert [(name, step) for name, _, step in board.figures] == [("val/examples", 1), ("val/examples", 2)]
        assert all(isinstance(figure, Figure) for _, figure, _ in board.figures)
        assert len(list((tmp_path / "board" / "examples").glob("val-*.png"))) == 2


class TestWhichImagesItDraws:
    @pytest.mark.parametrize(
        ("y", "n", "chosen"),
        [
            ([0, 0, 0, 1, 1, 2], 3, [0, 1, 2]),
            ([7, 4, 7, 4, 4], 4, [4, 7, 4, 7]),
            ([3, 3], 8, [3, 3]),
            ([*range(100), *range(100)], 4, [0, 25, 50, 75]),
            ([*range(10)], 8, [*range(8)]),
        ],
    )
    def test_from_every_class_in_turn_and_evenly_spaced_if_there_are_too_many(
        self, y: list[int], n: int, chosen: list[int]
    ):
        assert torch.tensor(y)[spread(torch.tensor(y), n)].tolist() == chosen

    def test_each_is_drawn_at_most_once_and_the_first_ones_of_a_class_first(self):
        assert spread(torch.tensor([1, 0, 1, 0, 0]), 8).tolist() == [1, 0, 3, 2, 4]

    def test_a_batch_that_is_sorted_by_class_shows_both(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        seen: list[Examples] = []
        monkeypatch.setattr(examples, "draw", lambda *args: seen.append(args[0]) or draw(*args))
        x, y = torch.linspace(0.1, 0.9, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4), torch.tensor([0, 0, 0, 0, 1, 1])
        sorted_by_class = DataLoader(TensorDataset(x, y), batch_size=6)
        callback = AdversarialExamples(Brighten(), num_images=2)
        trainer(tmp_path, callback).validate(Plain(), sorted_by_class, verbose=False)
        assert seen[0].labels.tolist() == [0, 1]
        assert torch.equal(seen[0].clean, x[[0, 4]])


class TestWhatItLeavesBehind:
    def test_flags_gradients_and_random_numbers_are_as_before(self):
        net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), Threshold())
        net[0].eval()
        modes, random_numbers = [module.training for module in net.modules()], torch.get_rng_state()
        craft(net, Brighten(), torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long))
        assert [module.training for module in net.modules()] == modes
        assert all(parameter.grad is None for parameter in net.parameters())
        assert torch.equal(torch.get_rng_state(), random_numbers)

    def test_buffers_are_as_before(self):
        net, x = tiny.Counting(), tiny.images(2).x
        craft(net, Brighten(), x, torch.zeros(2, dtype=torch.long))
        assert (int(net.added), int(net.replaced)) == (0, 0)

    def test_a_fit_ends_with_the_weights_it_ends_with_without_pictures(self, tmp_path: Path):
        class Noisy(Plain):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return super().training_step([batch[0] + torch.randn_like(batch[0]), batch[1]], batch_idx)

        weights = []
        for images, every in ((3, 1), (1, 100)):
            torch.manual_seed(1)
            module = Noisy()
            callback = AdversarialExamples(Brighten(), num_images=images, every_n_epochs=every)
            trainer(tmp_path, callback, max_epochs=3).fit(module, loader(), loader())
            weights.append(module.net.scale.item())
        assert weights[0] == weights[1]


class TestThePicture:
    def example(self, channels: int = 1) -> Examples:
        clean = torch.full((2, channels, 4, 6), 0.3)
        delta = torch.tensor([0.1, -0.05]).view(2, 1, 1, 1)
        return Examples(clean, clean + delta, torch.tensor([0, 1]), opinions(0.02, 0.75), opinions(0.9, 0.6))

    def test_shows_clean_image_magnified_perturbation_and_adversarial_image(self):
        images = [image.get_array() for image in draw(self.example(3), "", magnification=2).axes[0].images]
        assert [float(image.min()) for image in images] == pytest.approx([0.3, 0.7, 0.4, 0.3, 0.4, 0.25])
        assert [float(image.max()) for image in images] == pytest.approx([0.3, 0.7, 0.4, 0.3, 0.4, 0.25])

    def test_magnifies_colour_by_50_and_grey_as_far_as_nothing_is_clipped(self):
        (_, colour, *_), (_, grey, *_) = (draw(self.example(c), "").axes[0].images for c in (3, 1))
        assert float(colour.get_array().min()) == 1
        assert float(grey.get_array().max()) == pytest.approx(1)
        texts = [text.get_text() for text in draw(self.example(), "").axes[0].texts]
        assert "perturbation x 5" in texts

    def test_an_attack_that_changes_nothing_is_mid_grey(self):
        unchanged = self.example()._replace(adversarial=self.example().clean)
        assert float(draw(unchanged, "").axes[0].images[1].get_array().max()) == 0.5

    def test_names_classes_confidences_and_mistakes_in_red(self):
        axes = draw(
            self.example(), "PGD(eps=8/255)", class_names=["dark", "a_really_very_bright_thing"], target=1
        ).axes[0]
        texts = {text.get_text(): text.get_color() for text in axes.texts}
        assert {"PGD(eps=8/255)", "dark", "a really very b…"} <= texts.keys()
        assert "correct: 2 of 2 clean, 1 of 2 adversarial; target: a really very b…" in texts
        assert texts["dark  98%"] == texts["a really very b…  75%"] == texts["a really very b…  60%"] == "black"
        assert texts["a really very b…  90%"] == "crimson"

    def test_keeps_the_proportions_of_images(self):
        left, right, lower, upper = draw(self.example(), "").axes[0].images[0].get_extent()
        assert (right - left) / abs(lower - upper) == pytest.approx(6 / 4)

    def test_takes_class_names_from_the_data_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Named(LightningDataModule):
            class_names = ("dark", "bright")

            def val_dataloader(self) -> Any:
                return loader()

        seen = []
        monkeypatch.setattr(examples, "draw", lambda *args: seen.append(args[3]) or draw(*args))
        trainer(tmp_path, AdversarialExamples(Brighten())).validate(Plain(), datamodule=Named(), verbose=False)
        assert seen == [("dark", "bright")]

    def test_headline_writes_attacks_as_the_field_does(self):
        assert describe(Brighten(8 / 255, share=0.031)) == "Brighten(eps=8/255, share=0.031)"
        assert describe(Brighten(0.2, targeted=True, name="x")) == "Brighten(eps=0.2, targeted=True, name=x)"

    def test_probabilities_are_the_nets_for_both_images(self):
        x = torch.tensor([0.3, 0.45]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
        result = craft(Threshold(), Brighten(0.1), x, torch.zeros(2, dtype=torch.long))
        assert result.clean_probabilities[:, 1].tolist() == pytest.approx(
            [1 / (1 + 2.718281828**8), 1 / (1 + 2.718281828**2)]
        )
        assert result.adversarial_probabilities.argmax(dim=1).tolist() == [0, 1]


class TestTargetedAttacks:
    def test_are_given_the_target_for_every_sample(self):
        class Records(Brighten):
            def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                assert y.tolist() == [1, 1]
                return x

        x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
        assert craft(Threshold(), Records(targeted=True), x, y, target=1).labels.tolist() == [0, 0]

    def test_at_a_class_that_does_not_exist_are_refused(self):
        x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
        with pytest.raises(ValueError, match=r"^target=2 .*2 classes"):
            craft(Threshold(), Brighten(targeted=True), x, y, target=2)

    @pytest.mark.parametrize(("targeted", "target"), [(True, None), (False, 3)])
    def test_need_a_target_and_others_none(self, targeted: bool, target: int | None):
        with pytest.raises(ValueError, match=f"^target={target} .*Brighten"):
            AdversarialExamples(Brighten(targeted=targeted), target=target)


class TestBadInput:
    def test_a_module_without_a_net_is_refused_before_anything_runs(self, tmp_path: Path):
        module = Plain()
        module.classifier, module.net = module.net, None
        with pytest.raises(TypeError, match=r"^AdversarialExamples .*Plain .*net .*classifier"):
            trainer(tmp_path, AdversarialExamples(Brighten())).fit(module, loader(), loader())

    def test_missing_matplotlib_is_told_with_the_remedy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ModuleNotFoundError, match=r"^AdversarialExamples .*lit-robust\[plot\]"):
            trainer(tmp_path, AdversarialExamples(Brighten())).validate(Plain(), loader(), verbose=False)

    def test_neither_grey_nor_colour_is_refused(self, tmp_path: Path):
        with pytest.raises(ValueError, match="2 channels"):
            trainer(tmp_path, AdversarialExamples(Brighten())).validate(Plain(), loader((2, 4, 4)), verbose=False)

    @pytest.mark.parametrize(("name", "value"), [("num_images", 0), ("every_n_epochs", 0), ("magnification", 0.0)])
    def test_numbers_that_make_no_sense_are_refused(self, name: str, value: float):
        with pytest.raises(ValueError, match=f"^{name}="):
            AdversarialExamples(Brighten(), **{name: value})


def test_can_be_written_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AdversarialExamples, "callback")
    attack = {"class_path": f"{__name__}.Brighten", "init_args": {"eps": 0.1}}
    config = parser.parse_object({"callback": {"attack": attack, "num_images": 3}})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    callback = instantiate(config).callback
    assert (callback.attack, callback.num_images) == (Brighten(0.1), 3)
