"""Verifies an export against the folder it was made from: every name, every number.

Reads the written file itself, in the same way as a base is read from such a file.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.device.threads import one_thread_here
from dreambooth.durable import sync
from dreambooth.errors import ExportError
from dreambooth.events import OnProgress
from dreambooth.export.merged import whole_model
from dreambooth.export.single_file import OriginalModel, Precision, Written, convert
from dreambooth.formats.safetensors_file import Cast, same_bits, stored_dtype
from dreambooth.models.saved_hashes import refuse_changed
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.models.weights import not_finite, read_weights

if TYPE_CHECKING:
    from torch import Tensor

Parts = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Verdict:
    """What was compared: the number of tensors and their bytes.

    format_loss: for a merged LoRA, the share of its change lost to the number format.
    """

    path: Path
    num_tensors: int
    num_bytes: int
    format_loss: float | None = None

    def __str__(self) -> str:
        text = f"Verified: all {self.num_tensors} tensors match the model."
        if self.format_loss is None:
            return text
        loss = f"Its number format loses {self.format_loss:.2%} of its change." if self.format_loss else ""
        return f"{text} The LoRA was merged in fp32. {loss}".rstrip()


def convert_verified(
    model_dir: Path,
    out_path: Path,
    *,
    precision: Precision | None = None,
    use_safetensors: bool | None = None,
    strength: Strength = WHOLE,
    models_dir: Path | None = None,
    on_progress: OnProgress | None = None,
    base: str | None = None,
    token: str | None = None,
) -> Verdict:
    """Write the folder as one file, read it back, compare it with the folder, and return what was compared.

    With a strength other than 1 the source is the folder of base + s (trained - base), for a LoRA of base + s x change,
    which is made temporarily; base: as in `whole_model`.

    Raises ExportError, leaving no file, if something differs, and for what `convert` and `whole_model` raise it.
    """
    # More torch threads would take the core on which a training computes.
    with (
        one_thread_here(),
        whole_model(
            model_dir, strength, out_path, base=base, precision=precision, models_dir=models_dir, token=token
        ) as whole,
    ):
        verdicts: list[Verdict] = []
        path = convert(
            whole.folder, out_path, precision=precision, use_safetensors=use_safetensors, on_progress=on_progress,
            check=lambda written: verdicts.append(verify(written)),
        )  # fmt: skip
    (verdict,) = verdicts
    return dataclasses.replace(verdict, path=path, format_loss=whole.format_loss)


def verify(written: Written) -> Verdict:
    """Compare a written file with its folder.

    Raises ExportError naming what differs or is not finite. Makes no copy of the model.
    """
    model, path = written.model, written.path
    weights = read_weights(path, is_safetensors=written.is_safetensors)
    strange = sorted(weights.keys() ^ model.expected_names)
    if strange:
        raise _differs(path, f"Missing or not the original's: {', '.join(strange[:3])}.")
    kinds = {name: (stored_dtype(one, written.float_dtype), one.shape) for name, one in model.weights.items()}
    misshapen = [name for name, one in weights.items() if (one.dtype, one.shape) != kinds[name]]
    if misshapen:
        raise _differs(path, f"{misshapen[0]} is not the folder's.")
    same = ComparedPairs()
    with ThreadPoolExecutor(4) as beside:
        on_disk = beside.submit(sync, path)
        unchanged = beside.submit(refuse_changed, model.folder, error=ExportError)
        broken = beside.submit(not_finite, weights)
        compared = beside.submit(_first_difference, written, weights, same)
        family = model.family
        other = _other_weight(family.from_single_file(weights), family.named_as_read(model.parts), same)
        different = compared.result()
        on_disk.result()
        unchanged.result()
        if different:
            raise _differs(path, f"{different[0]} is not the folder's.")
        if other:
            raise _differs(path, f"Read as a base, its {other[0]} is not the folder's.")
        if name := broken.result():
            raise _not_finite(model, name)
    return Verdict(path, len(weights), sum(tensor.nbytes for tensor in weights.values()))


class ComparedPairs:
    """Compares tensors of a file with the folder's, in the file's number format, each pair once.

    The models' weights and the list of all tensors have the same pairs. A pair is identified by its memory addresses.
    """

    def __init__(self) -> None:
        self._verdicts: dict[tuple[int, int, int], bool] = {}

    def __call__(self, of_folder: "Tensor", of_file: "Tensor", cast: Cast) -> bool:
        """Return whether the folder's tensor, cast to the file's number format, equals the file's bit for bit."""
        pair = (of_folder.data_ptr(), of_file.data_ptr(), of_file.nbytes)
        if pair not in self._verdicts:
            self._verdicts[pair] = same_bits(cast(of_folder, of_file.dtype), of_file)
        return self._verdicts[pair]


def _first_difference(written: Written, weights: "dict[str, Tensor]", same: ComparedPairs) -> list[str]:
    """Return the name of a tensor whose bits differ from the folder's in the file's format, None if all are equal."""
    cast, folder = Cast(), written.model.weights
    # `_other_weight` starts from the other end: the two meet in the UNet.
    differing = (name for name in reversed(weights) if not same(folder[name], weights[name], cast))
    return list(itertools.islice(differing, 1))


def _other_weight(file_parts: "dict[str, dict[str, Tensor]]", folder_parts: Parts, same: ComparedPairs) -> list[str]:
    """Return a weight that a model loaded from the file would have differently than from the folder, or None.

    The file's tensors have the names that reading it as a base gives them: only this finds a name mapped wrongly in
    both directions.
    """
    cast = Cast()
    for part in reversed(file_parts):
        of_file, of_folder = file_parts[part], folder_parts[part]
        if strange := sorted(of_file.keys() ^ of_folder.keys()):
            return strange[:1]
        for name, tensor in of_file.items():
            if not same(of_folder[name], tensor, cast):
                return [name]
    return []


def _not_finite(model: OriginalModel, name: str) -> ExportError:
    """Return the error for a tensor of the written file with NaN or infinity, caused by the folder or the format."""
    if not_finite({name: model.weights[name]}):
        return ExportError(
            f'The model in "{model.folder}" is damaged.',
            f"Its tensor {name} holds numbers that are not finite (NaN or infinity).",
            "Convert an earlier step, or download the model again.",
        )
    return ExportError(
        f'"{model.folder}" does not fit into fp16.', f"Numbers of its tensor {name} are too large for that format.",
        "Convert with --precision fp32.",
    )  # fmt: skip


def _differs(path: Path, why: str) -> ExportError:
    return ExportError(
        "The written file is not the model.",
        why,
        "A failing disk, or a bug here: try another folder, or report it.",
    )
