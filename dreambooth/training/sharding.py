"""Weights, gradients and moments sharded across processes.

torch's `fully_shard` (FSDP2, Zhao et al. 2023, arXiv 2304.11277) gathers a unit's weights only for its forward and its
backward, and gives every process the mean of its shard of the gradients. Everything else works on plain parameters in
the memory of a process's own shard, so that clipping, AdamW and exact states are the same as on one device.
"""

from typing import TYPE_CHECKING, Any

from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.training.method import LearningWeights, parameters_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def refuse_one_process(num_processes: int) -> None:
    """Raise ConfigError if there is only one process."""
    if num_processes == 1:
        message = "needs several processes: start with `accelerate launch`, or leave it out."
        raise ConfigError([FieldProblem("shard_weights", message)])


def shard(module: Any, device: "torch.device", num_processes: int) -> None:
    """Shard a UNet or text encoder on the device, unit by unit; each process keeps one shard of each.

    Frozen weights stay whole in each process: nothing would gather them to be saved.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (num_processes,))
    frozen = {weight for weight in module.parameters() if not weight.requires_grad}
    for unit in [*_units(module), module]:
        # The last unit gathered is freed as well: between steps there are only shards.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)


def _units(module: Any) -> list[Any]:
    """Return what is gathered at a time: the blocks of a UNet, the layers of a text encoder."""
    kinds = ("ResnetBlock2D", "Transformer2DModel", "CLIPEncoderLayer")
    return [part for part in module.modules() if type(part).__name__ in kinds]


class Shards:
    """This process's shards of the trained weights, `own`, as plain parameters beside the models' own (DTensors)."""

    def __init__(self, weights: LearningWeights) -> None:
        from torch import nn

        self._whole: list[Any] = [*parameters_of(weights)]
        parts = iter([nn.Parameter(parameter.to_local().detach()) for parameter in self._whole])
        self.own: LearningWeights = {model: {name: next(parts) for name in named} for model, named in weights.items()}
        self._own = parameters_of(self.own)

    def take_gradients(self) -> None:
        """Pass the gradients of the shards, already means over all processes, to the plain parameters."""
        for whole, own in zip(self._whole, self._own, strict=True):
            own.grad = None if whole.grad is None else whole.grad.to_local()
            whole.grad = None

    def total_norm(self, norm: "Tensor") -> "Tensor":
        """Return the norm of the whole gradient from those of the processes' shards."""
        import torch.distributed

        square = norm.square()
        torch.distributed.all_reduce(square)
        return square.sqrt()

    def as_whole(self, number: int, value: "Tensor") -> "Tensor":
        """Return an optimizer tensor of a parameter's shard as a DTensor of the whole."""
        from torch.distributed.tensor import DTensor

        whole = self._whole[number]
        if value.shape != self._own[number].shape:
            return value
        part: Tensor = DTensor.from_local(
            value, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )
        return part

    def part(self, number: int, value: Any) -> Any:
        """Return this process's shard of a tensor as large as a whole parameter."""
        whole = self._whole[number]
        return own_part(whole, value) if getattr(value, "shape", None) == whole.shape else value


def gathered(tensor: "Tensor") -> "Tensor":
    """Return the whole tensor of a shard, for which all processes have to call; other tensors unchanged."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(like: "Tensor", value: "Tensor") -> "Tensor":
    """Return this process's shard of a value, sharded like `like`; all of it if that is not sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    cut = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return cut.to_local()


def from_main_process(is_due: bool) -> bool:
    """Return the first process's value in every process; all of them have to call."""
    from accelerate.utils import broadcast_object_list

    values = [is_due]
    broadcast_object_list(values)
    return values[0]
