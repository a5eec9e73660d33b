"""Pictures of adversarial examples."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_robust import require
from lit_robust.attacks.base import Attack, check_is_attack
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import callbacks_of, check_net
from lit_robust.measures.accuracy import describe
from lit_robust.measures.attack_checks import tell_of_short_steps
from lit_robust.measures.attacked_examples import craft, spread
from lit_robust.measures.pictures import draw
from lit_robust.runs import run_folder
from lit_robust.whole_files import path_of, write_whole


class AdversarialExamples(Callback):
    """Draws clean images, magnified perturbations and adversarial images, with the net's predictions.

    A picture has a row for each of ``num_images`` images of the first validation batch, from as many classes as
    possible. The images are the same every time if the loader does not shuffle, and so is the attack's random start.
    The picture is saved as a PNG, and every ``WandbLogger`` and ``TensorBoardLogger`` gets it as ``val/examples``. A
    test is drawn likewise, as ``test/examples``. Class names are the data module's ``class_names``, if it has any.

    Only rank zero draws, right after the batch, with averaged weights if there are any. Drawing changes nothing in
    training: neither modes nor gradients nor random numbers.

    Args:
        attack: The attack, against the net in eval mode.
        num_images: The number of rows.
        magnification: What the perturbation is multiplied by before it is drawn around mid-grey; by default 50 for
            colour images, as in the NuAT slides, and for grey images the largest factor that does not clip.
        every_n_epochs: Draws in the validation of every n-th epoch.
        target: The class that a targeted attack aims at.
        dirpath: Where pictures are saved; by default ``examples`` in the run's folder.
        x: Where a batch keeps its images: an index, a key, the name of a field, or a path such as ``"views.0"``.
        y: The same for the labels.
        net: The sub-module that turns images into logits; None for the module itself or, if it has no ``forward``, its
            ``net``.
        mean: What the data pipeline subtracts from pixels in [0, 1], if it normalises. Pictures show the pixels.
        std: What it then divides them by.
    """

    logged_keys = ()

    def __init__(
        self,
        attack: Attack,
        num_images: int = 8,
        magnification: float | None = None,
        every_n_epochs: int = 1,
        target: int | None = None,
        dirpath: str | None = None,
        x: Key = 0,
        y: Key = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        for name, count in (("num_images", num_images), ("every_n_epochs", every_n_epochs)):
            require.integer(name, count, least=1)
        if magnification is not None:
            require.number("magnification", magnification, above=0, hint="null is the default")
        check_is_attack("attack", attack)
        if target is not None:
            require.integer("target", target, least=0, hint="it is the number of a class")
        if getattr(attack, "targeted", False) != (target is not None):
            raise ValueError(
                f"target={target} does not fit {type(attack).__name__}: a targeted attack needs the class "
                "that it aims at, and any other takes none."
            )
        tell_of_short_steps({"attack": attack})
        self.attack = attack
        self.num_images = num_images
        self.magnification = magnification
        self.every_n_epochs = every_n_epochs
        self.target = target
        self.dirpath = None if dirpath is None else path_of("dirpath", dirpath, "a folder")
        #: The files drawn by this process, since the last fit began.
        self.pictures: list[Path] = []
        self.adapter = Adapter(x, y, net, mean, std)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module has a net and that matplotlib is installed; find the folder.

        Raises:
            TypeError: If the module has no net.
            ModuleNotFoundError: Without matplotlib.
        """
        check_net(pl_module, self.adapter.net, "AdversarialExamples attacks")
        require.fine_precision(str(trainer.precision))
        if stage == "fit":
            self.pictures = []
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError('AdversarialExamples needs matplotlib: pip install "lit-robust[plot]".')
        # Here, because all ranks must ask for the run's folder.
        self._folder = self._folder_in(trainer)
        for other in callbacks_of(trainer, AdversarialExamples):
            if other is not self and other._folder_in(trainer).resolve() == self._folder.resolve():
                raise ValueError("two AdversarialExamples would draw over each other's pictures: give each a dirpath.")

    def _folder_in(self, trainer: Trainer) -> Path:
        return self.dirpath or run_folder(trainer) / "examples"

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the first batch of a validation that is due."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        due = not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking and batch_idx == dataloader_idx == 0:
            when = f"epoch={trainer.current_epoch}-step={trainer.global_step}"
            self._draw(trainer, pl_module, batch, "val", when)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draw the first batch."""
        if batch_idx == dataloader_idx == 0:
            self._draw(trainer, pl_module, batch, "test", Path(str(trainer.ckpt_path or "these weights")).stem)

    def _draw(self, trainer: Trainer, module: LightningModule, batch: Any, split: str, when: str) -> None:
        if not trainer.is_global_zero:
            return
        self.adapter.check(module, batch)
        net, (x, y, *_) = self.adapter.logits_net(module), self.adapter.labelled(batch)
        chosen = spread(y, self.num_images)
        examples = craft(net, self.attack, x[chosen], y[chosen], self.target)
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        figure = draw(examples, describe(self.attack), self.magnification, names, self.target)
        path, picture = self._folder / f"{split}-{when}.png", BytesIO()
        figure.savefig(picture, format="png")
        write_whole(path, picture.getvalue())
        self.pictures.append(path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"{split}/examples", [str(path)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(f"{split}/examples", figure, trainer.global_step)
