"""The summary of the model at the start of a training, without FLOPs that were not counted."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary.model_summary import get_formatted_model_size, get_human_readable_count


def leave_out_unknown_flops(trainer: Any) -> None:
    """Let the trainer's summaries print FLOPs only if they have counted any.

    Lightning counts them in a forward of the module's ``example_input_array``; without one it prints 0.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, ModelSummary) and "summarize" not in vars(callback):
            callback.summarize = _only_known_flops(callback.summarize)  # type: ignore[method-assign]  # on this object only


def _only_known_flops(summarize: Callable[..., None]) -> Callable[..., None]:
    def only_known(
        columns: list[tuple[str, list[str]]],
        parameters: int,
        trainable: int,
        megabytes: float,
        modes: dict[str, int],
        total_flops: int = 0,
        **kwargs: Any,
    ) -> None:
        if total_flops:
            summarize(columns, parameters, trainable, megabytes, modes, total_flops=total_flops, **kwargs)
            return
        table = [[name, *cells] for name, cells in columns if name != "FLOPs"]
        rows = list(zip(*([cell.ljust(max(map(len, column))) for cell in column] for column in table), strict=True))
        head, *body = [" | ".join(row).rstrip() for row in rows]
        line = "-" * max(map(len, [head, *body]))
        some, all_ = (get_human_readable_count(count).strip() for count in (trainable, parameters))
        counts = f"{some} of {all_} parameters trainable, {get_formatted_model_size(megabytes)} MB"
        rank_zero_info("\n".join(["", head, line, *body, line, counts]))

    return only_known
