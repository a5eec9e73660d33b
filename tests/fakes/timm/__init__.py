"""What tests need of timm, with its names: two small nets, one of which has two heads."""

from torch import nn


class Small(nn.Module):
    """Convolution, BatchNorm, pooling and a linear head."""

    def __init__(self, num_classes, in_chans, mean):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.fc = nn.Linear(8, num_classes)
        self.pretrained_cfg = {"mean": mean, "std": (0.25, 0.25, 0.25), "input_size": (3, 224, 224)}

    def forward(self, x):
        return self.fc(self.stem(x).flatten(1))


class TwoHeads(Small):
    """The logits are a mean of two, as those of levit."""

    def __init__(self, num_classes, in_chans, mean):
        super().__init__(num_classes, in_chans, mean)
        self.head_dist = nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.stem(x).flatten(1)
        return (self.fc(features) + self.head_dist(features)) / 2


MODELS = {"resnet18": Small, "levit_128s": TwoHeads}


def list_models():
    return list(MODELS)


def create_model(model_name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    if unknown := set(kwargs) - {"num_classes", "in_chans"}:
        raise TypeError(f"{model_name}() got an unexpected keyword argument {min(unknown)!r}")
    name, _, tag = model_name.partition(".")
    if tag not in ("", "a1_in1k"):
        raise RuntimeError(f"Invalid pretrained tag ({tag}) for {name}.")
    if pretrained:
        raise ConnectionError("no network here")
    arguments = {"num_classes": 1000, "in_chans": 3} | kwargs  # which no parser sees, as in timm
    return MODELS[name](**arguments, mean=(0.5, 0.5, 0.5) if tag else (0.485, 0.456, 0.406))
