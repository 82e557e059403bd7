"""Owns the device: training and generation ask it for the device, and it passes the device between them."""

import contextlib
import gc
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.device.threads import use_all_threads
from dreambooth.errors import DeviceError
from dreambooth.models.half_precision import dtype_for_pictures

if TYPE_CHECKING:
    import torch

    from dreambooth.models.adapter import Adapter
    from dreambooth.models.base import Base

Holder = Literal["training", "generation"]
# How often waiting for the device checks whether to give up.
WAIT_S = 0.2


class ModelManager:
    """Gives the device to one holder at a time and keeps generation's models on it between requests.

    On CUDA inference is in fp16, on other devices in fp32. No other code moves a model to the GPU.
    """

    def __init__(self, device_name: str | None = None) -> None:
        self._device_name = device_name
        self._device: torch.device | None = None
        self._lease = threading.Lock()
        self._holder: Holder | None = None
        self._resident: tuple[Hashable, Base] | None = None
        self._adapters: tuple[Hashable, Sequence[Adapter]] = ((), ())

    @property
    def device(self) -> "torch.device":
        """Return the device, detected on first use: CUDA, then Apple's, then the CPU."""
        import torch

        if self._device is None:
            found = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
            self._device = torch.device(self._device_name or (found[0] if found else "cpu"))
            if self._device.type == "cuda":
                _join_freed_memory()
        return self._device

    @property
    def inference_dtype(self) -> "torch.dtype":
        """Return fp16 on CUDA and fp32 elsewhere."""
        import torch

        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def autocast_dtype(self) -> "torch.dtype | None":
        """Return the autocast format of generation while the weights on the device are fp32 masters; None for fp32."""
        return self.inference_dtype if self.device.type == "cuda" else None

    @property
    def held_bytes(self) -> int:
        """Return the device memory that this process holds and its next training can use; 0 without CUDA."""
        if self._device is None or self._device.type != "cuda":
            return 0
        import torch

        return int(torch.cuda.memory_reserved(self._device))

    @property
    def holder(self) -> Holder | None:
        """Return the current holder of the device."""
        return self._holder

    @contextlib.contextmanager
    def lease(
        self, holder: Holder, *, wait: bool, give_up: Callable[[], bool] = lambda: False
    ) -> Iterator["torch.device"]:
        """Give the device, and with it torch's threads, to this thread; afterwards its memory is freed.

        Raises DeviceError if it is in use; with `wait` only once `give_up` says so.
        """
        taken = self._lease.acquire(blocking=False)
        while not taken and wait and not give_up():
            taken = self._lease.acquire(timeout=WAIT_S)
        if not taken:
            raise DeviceError(
                f"The device is busy with {self._holder}.",
                "Only one task can use it at a time.",
                "Try again when that is done.",
            )
        self._holder = holder
        try:
            use_all_threads()
            if holder == "training":
                self._drop_resident()
            yield self.device
        finally:
            self._holder = None
            self._lease.release()
            if holder == "training":
                self.collect()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let the training that holds the device give it to generation for the duration of the block."""
        self.collect()
        self._holder = None
        self._lease.release()
        try:
            yield
        finally:
            self._lease.acquire()
            self._holder = "training"
            self._drop_resident()

    def resident(self, key: Hashable, load: Callable[[], "Base"]) -> "Base":
        """Return the models of `key` on the device for inference; loads them if others or none are there.

        Others are dropped first. Call it under a generation lease; see `saved_step.resident`.
        """
        if self._resident is None or self._resident[0] != key:
            self._drop_resident()
            base = load()
            for part in base.family.layout.parts:
                module = getattr(base, part.name).requires_grad_(False)
                self.place(module, dtype=dtype_for_pictures(part, module, self.inference_dtype))
            if self.device.type == "cuda":
                import torch

                for module in (base.unet, base.vae):  # the order of numbers that half-precision convolutions want
                    module.to(memory_format=torch.channels_last)
            self._resident = (key, base)
        return self._resident[1]

    def adapt(self, key: Hashable, attach: Callable[[], "Sequence[Adapter]"]) -> "Sequence[Adapter]":
        """Have the models on the device carry the adapters of `key`, and return these.

        They are attached if others, or none, are on the models.
        """
        if self._adapters[0] != key:
            for adapter in self._adapters[1]:
                adapter.detach()
            self._adapters = ((), ())
            self._adapters = (key, attach())
        return self._adapters[1]

    def place(self, module: Any, *, dtype: "torch.dtype | None" = None) -> None:
        """Move a module to the device, and to a number format if one is given."""
        module.to(device=self.device, dtype=dtype)

    def park(self, module: Any) -> None:
        """Move a module off the device."""
        module.to(device="cpu")
        self._empty_cache()

    def only(self, base: "Base", parts: Collection[str]) -> None:
        """Have these parts of a base on the device and its others off it; on the CPU nothing moves."""
        if self.device.type == "cpu":
            return
        for name, module in base.modules().items():
            if name not in parts:
                module.to(device="cpu")
        self._empty_cache()
        for name in parts:
            self.place(getattr(base, name))

    def collect(self) -> None:
        """Free unused models and return their memory to the device."""
        # Models contain reference cycles. Half a second in a process with many objects: not for every sample.
        gc.collect()
        if self.device.type == "cuda":
            import torch

            # Each thread that multiplied matrices keeps a workspace of 32 MiB; torch's CUDA notes name no other way to
            # free it.
            torch._C._cuda_clearCublasWorkspaces()
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _drop_resident(self) -> None:
        if self._resident is not None:
            self._resident, self._adapters = None, ((), ())
            self.collect()


def _join_freed_memory() -> None:
    """Let the allocator join freed memory of all sizes, if the driver can: less of it stays unused."""
    import torch

    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    try:
        torch.zeros(1, device="cuda")
    except RuntimeError:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")


def use_attention(modules: list[Any], backend: str, notice: Callable[[str], None]) -> None:
    """Switch attention to xformers if requested and working; modules start with torch's own SDPA."""
    if backend != "xformers":
        return
    from dreambooth.device.hardware import xformers_problem

    problem = xformers_problem()
    if problem is not None:
        notice(f"xformers does not work here ({problem}); using SDPA.")
        return
    for module in modules:
        module.enable_xformers_memory_efficient_attention()
