"""An ordinary image classifier of a user, written without this library."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

#: What this pipeline's transform normalises with.
MEAN, STD = 0.305, 0.376


class Digits(Dataset):
    """Images as dictionaries, normalised in the transform."""

    def __init__(self, images, labels, mean=MEAN, std=STD):
        self.images, self.labels = images, labels
        self.mean, self.std = mean, std

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = torch.from_numpy(self.images[i]).float().unsqueeze(0) / 16
        return {"image": (image - self.mean) / self.std, "label": int(self.labels[i]), "name": f"digit {i}"}


class DigitsData(LightningDataModule):
    def __init__(self, batch_size=128):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        digits = load_digits()
        self.train = Digits(digits.images[:1400], digits.target[:1400])
        self.test = Digits(digits.images[1400:], digits.target[1400:])

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.test, 200)

    def test_dataloader(self):
        return DataLoader(self.test, 200)


def backbone():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class DigitClassifier(LightningModule):
    def __init__(self, lr=1e-2, epochs=10):
        super().__init__()
        self.save_hyperparameters()
        self.model = backbone()
        self.train_accuracy = MulticlassAccuracy(10, average="micro")
        self.val_accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, image):
        return self.model(image)

    def training_step(self, batch):
        logits = self(batch["image"])
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=0.05)
        self.train_accuracy(logits, batch["label"])
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(logits))
        self.log("accuracy", self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(logits))
        return {"loss": loss, "names": batch["name"]}

    def validation_step(self, batch, batch_idx):
        logits = self(batch["image"])
        self.val_accuracy(logits, batch["label"])
        self.log("val_accuracy", self.val_accuracy, batch_size=len(logits))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
