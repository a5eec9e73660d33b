"""Evaluation of a net: Lightning's validation, test and predict steps."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.attacks.autoattack_findings import Findings, gathering
from lit_robust.attacks.base import check_attack
from lit_robust.batch import Batch, as_batch
from lit_robust.compilation import compile_in_place
from lit_robust.first_batch import check_first_batch, check_sources, check_training
from lit_robust.guards import frozen
from lit_robust.limits import Limits
from lit_robust.measures.accuracy import Accuracy, Survivors, legend, rows_of, surviving, table
from lit_robust.measures.alarm_rules import in_words
from lit_robust.measures.alarms import IMAGES, Alarms, place_of
from lit_robust.measures.attack_checks import check_attacks, check_names, tell_of_findings
from lit_robust.measures.default_attacks import evaluation_of
from lit_robust.measures.image_blocks import Blocks
from lit_robust.runs import load_sources, name_among
from lit_robust.seeds import seed
from lit_robust.torch_internals import is_compiled, unwrapped
from lit_robust.training.arguments import compose_signature
from lit_robust.training.attacked import Attacked, let_give_logits
from lit_robust.training.metrics import REDUCED
from lit_robust.training.optimizer_checks import check_any_trainable
from lit_robust.training.summary import leave_out_unknown_flops
from lit_robust.training.trainer_checks import check_one_loader, check_trainer, tell_of_another_eps


class Evaluated(Attacked):
    """A net and the attacks that measure its robustness, also under Lightning's inference mode.

    Args:
        net: Returns logits ``(N, num_classes)`` for images in [0, 1], alone or as the attribute ``logits``; it
            normalises the images itself.
        num_classes: The number of classes; the command line takes it from the data.
        attack: The training adversary, whose threat set the default attacks search.
        val_attack: The attack behind ``val/acc/robust``, which selects the best checkpoint; by default 7 steps of eps/7
            from the clean image at the training attack's eps, as NuAT's and GAT's code selects for CIFAR-10.
        test_attacks: The attacks of ``test`` by name; by default PGD-20 at the training attack's eps, on cross-entropy
            (``pgd20``) and on the margin of logits (``pgd20_margin``), and 40 steps of GAMA-PGD (``gama40``), each
            keeping the worst point of its run. For a perceptual training attack ``val_attack`` and this are LPA, see
            ``measures.default_attacks``.
        alarm_images: How many test images are probed, see ``measures.alarms``; 0 turns all alarms but ``no_graph`` off.
        alarm_sources: Checkpoints (in Python also nets, which are copied) whose adversarial images are shown to the net
            in a test, for the alarm ``transfer``.
        channels_last: Keeps images and weights in the memory format that is faster on GPUs and most CPUs.
        compile: Compiles the net with ``torch.compile``, if it can be; on if the net comes compiled.
        fold_batchnorm: Shows attacks in eval mode the net with BatchNorms folded into its convolutions: the same
            logits, in less time if the attack has many steps, see ``nets.folded``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give every method a signature with all its arguments."""
        super().__init_subclass__(**kwargs)
        compose_signature(cls)

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        val_attack: Attack | None = None,
        test_attacks: dict[str, Attack] | None = None,
        alarm_images: int = IMAGES,
        alarm_sources: Sequence[str | Path | nn.Module] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        fold_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        require.instance("net", net, nn.Module, "build it, such as lit_robust.nets.resnet18(num_classes=10)")
        net = unwrapped(net)
        require.integer("num_classes", num_classes, least=2)
        check_attack("attack", attack)
        if test_attacks is not None:
            check_names("test_attacks", test_attacks)
        require.integer("alarm_images", alarm_images, least=0)
        require.flags(channels_last=channels_last, compile=compile, fold_batchnorm=fold_batchnorm)
        if val_attack is None or test_attacks is None:
            default_val, default_test = evaluation_of(attack)
            val_attack = default_val if val_attack is None else val_attack
            test_attacks = default_test if test_attacks is None else test_attacks
        check_attacks({"attack": attack, "val_attack": val_attack}, test_attacks)
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        self.fold_batchnorm = fold_batchnorm
        self.compiles = compile and not is_compiled(self.net)
        if self.compiles:
            compile_in_place(self.net)
        self.compiled = any(map(is_compiled, self.net.modules()))
        let_give_logits(self.net)
        self.num_classes = num_classes
        self.attack = attack
        self._built_eps: float | None = getattr(attack, "eps", None)  # kept because a ramp changes attack.eps
        self.channels_last = channels_last
        self.val_attacks = {"robust": val_attack}
        self.test_attacks = test_attacks
        #: The counts of validation and test. In a dict, because sub-modules are listed in the summary of the model.
        self.survivors = {"val": Survivors(rows_of(self.val_attacks)), "test": Survivors(rows_of(self.test_attacks))}
        self.probed = {"test": Alarms(self.test_attacks, num_classes, alarm_images, load_sources(alarm_sources))}
        #: What attacks have found besides survivors, see ``attacks.autoattack_findings``; told at the end.
        self.findings = {"val": Findings(), "test": Findings()}
        #: Filled by ``test``: alarms by name, a sentence each, see ``measures.alarms``.
        self.alarms: dict[str, str] = {}
        #: Keeps what long attacks of a test have finished; nothing unless it is given a folder, ``Blocks("folder")``.
        self.blocks = Blocks()
        #: The last validation's accuracies by the name of the attack.
        self.val_results: dict[str, Accuracy] = {}
        #: Filled by ``test``: accuracies by the name of the tested checkpoint, and where that is.
        self.test_results: dict[str, dict[str, Accuracy]] = {}
        self._tested: dict[str, str] = {}
        #: The name of the file that the net's weights come from, if it is not a checkpoint of a training.
        self.weights_from: str | None = None
        #: The epoch and step of the checkpoint that was loaded last.
        self.loaded_at: dict[str, float] = {}
        self._checked_stages: set[Any] = set()
        self.limits = Limits(num_classes)

    def setup(self, stage: str) -> None:
        """Check packages and the trainer before the run instead of in the middle of an evaluation.

        Raises:
            ImportError: If an attack needs a package that is not installed.
            ValueError: If the trainer's precision would round images, it validates in no epoch, or it is asked for what
                a Defense cannot do.
        """
        super().setup(stage)
        check_trainer(self.trainer, self, stage)
        self.trainer.precision_plugin.convert_module(self)  # else a checkpoint of 64-true would be rounded to 32 bits
        for attack in (self.test_attacks if stage == "test" else self.val_attacks).values():
            attack.check_installed()
        if stage == "fit":
            tell_of_another_eps(self, self._built_eps)
            leave_out_unknown_flops(self.trainer)

    #: Callbacks take ``net`` instead of the module, whose ``forward`` adds nothing.
    forwards_to_net = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's logits ``(N, num_classes)``, so that an attack takes the module as it takes a net."""
        logits: Tensor = self.net(x)
        return logits

    def receive(self, raw: Any) -> Batch:
        """Give every batch the same type and memory format, and check the first one of each stage."""
        batch = as_batch(raw)
        if self.channels_last:
            batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
        if self.trainer.state.stage not in self._checked_stages:
            check_first_batch(self.net, batch, self.num_classes)
            if self.trainer.training:
                check_any_trainable(self.net)
                check_training(self.net, batch.x)
            self._checked_stages.add(self.trainer.state.stage)
        return self.limits.watch(batch)

    # Validation.

    def on_validation_epoch_start(self) -> None:
        """Reset the counters; an interrupted validation may have left some."""
        check_one_loader(self, self.trainer.num_val_batches)
        self.survivors["val"].reset()
        self.findings["val"].reset()

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw the same random starts in every epoch."""
        seed(self.device, "evaluate", batch_idx, self.global_rank)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the images that withstand the validation attack."""
        batch = self.receive(batch)
        self._count("val", self.val_attacks, batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/acc/clean`` and ``val/acc/robust``."""
        self.limits.check()
        self.val_results = self._log_accuracies("val")

    # Test.

    def on_test_epoch_start(self) -> None:
        """Reset the counters; an interrupted test may have left some."""
        check_one_loader(self, self.trainer.num_test_batches)
        for counted in (self.survivors["test"], self.probed["test"], self.findings["test"]):
            counted.reset()

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw the same random starts in every test, on any number of ranks that take batches in turn."""
        seed(self.device, "evaluate", batch_idx * self.trainer.world_size + self.global_rank, 0)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the images that withstand each attack; in float32: bfloat16's coarse logits overstate robustness."""
        batch = self.receive(batch)
        if not batch_idx:
            check_sources(self.probed["test"].sources, batch.x, self.num_classes)
        with torch.autocast(self.device.type, enabled=False):
            correct = self._count("test", self.test_attacks, batch)
            with frozen(self.net) if self.compiled else nullcontext():
                self.probed["test"].to(self.device).update(self.net, batch, correct, *place_of(self.trainer, batch_idx))

    def on_test_epoch_end(self) -> None:
        """Log ``test/acc/<attack>``, its 95 % interval and n, and the checkpoint's epoch and step."""
        self.limits.check()
        checkpoint = str(self.trainer.ckpt_path or "")
        name = name_among(self._tested, checkpoint) if checkpoint else self.weights_from or "these weights"
        self._tested[name] = checkpoint
        accuracies = self.test_results[name] = self._log_accuracies("test")
        for attack, accuracy in accuracies.items():
            bounds = dict(zip((f"test/low/{attack}", f"test/high/{attack}"), accuracy.interval, strict=True))
            self.log_dict({**bounds, "test/n": accuracy.n}, **REDUCED, batch_size=1)
        self.blocks.drop_images()
        self.alarms = self.probed["test"].compute()
        self.log("test/alarms", float(len(self.alarms)), **REDUCED, batch_size=1)
        if checkpoint:
            self.log_dict(self.loaded_at, **REDUCED, batch_size=1)  # Lightning's own count of both is 0 in a test

    def teardown(self, stage: str) -> None:
        """Print the table of all checkpoints tested so far; here, because progress bars are drawn until then."""
        if stage == "test" and self.trainer.is_global_zero and self.test_results:
            told = in_words(self.alarms, (probed := self.probed["test"]).n, probed.norm)
            print(f"\n{legend(self.test_attacks)}\n\n{table(self.test_results)}\n\n{told}\n")
        super().teardown(stage)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the epoch and step at which the checkpoint was written."""
        places = {"epoch": "epoch", "step": "global_step"}
        self.loaded_at = {name: float(checkpoint[key]) for name, key in places.items() if key in checkpoint}

    # Prediction.

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the class probabilities ``(N, num_classes)``; pixels and labels are checked as in a test."""
        batch = self.receive(batch)
        self.limits.check()  # now, because callbacks write each batch's predictions
        return torch.softmax(self.net(batch.x).float(), dim=1)

    def _count(self, split: Literal["val", "test"], attacks: dict[str, Attack], batch: Batch) -> dict[str, Tensor]:
        freezing = frozen(self.net) if self.compiled else nullcontext()
        with self.limits.naming_causes(), freezing, gathering(self.findings[split]):
            of_test: dict[str, Any] = {"without_graph": "keep", "blocks": self.blocks} if split == "test" else {}
            correct = surviving(self.net, attacks, batch, **of_test, attacked=self.folded(self.net, batch.x))
        self.survivors[split].to(self.device).update(correct, batch.weight)
        return correct

    def _log_accuracies(self, split: Literal["val", "test"]) -> dict[str, Accuracy]:
        accuracies = self.survivors[split].accuracies()
        self.survivors[split].reset()
        tell_of_findings(self.findings[split])
        for name, accuracy in accuracies.items():
            self.log(f"{split}/acc/{name}", accuracy.value, prog_bar=split == "val", **REDUCED, batch_size=1)
        return accuracies
