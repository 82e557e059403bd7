"""How many threads torch computes with: all of them in the thread that holds the device, one in every other.

Each thread that computes in parallel gets an OpenMP team of its own, which lives as long as the thread. With more
threads in teams than there are cores, libgomp's threads sleep between parallel regions instead of spinning, and a small
model's step takes two to three times as long. So threads that need a team end when their work is done.

torch's setting belongs to the calling thread, but is also the default of threads that have not used torch yet.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

_lock = threading.Lock()
_here = threading.local()
_count = 0  # of the thread that holds the device; 0 until it is first asked for


def use_all_threads() -> None:
    """Have torch compute with all its threads in this thread, and with one in threads that start using it later.

    "All" is the value of OMP_NUM_THREADS, which the environment's reader sets, or of torch.set_num_threads in the first
    thread that asks.
    """
    _set_number(_number())
    _here.is_counted = True


@contextmanager
def one_thread_here() -> Iterator[None]:
    """Have torch compute without a team in this thread, and in those started by the block."""
    import torch

    _number()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _set_number(before)


def single_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return an executor whose threads compute without a team."""
    import torch

    _number()
    return ThreadPoolExecutor(count, name, torch.set_num_threads, (1,))


def _set_number(count: int) -> None:
    """Set this thread's number; threads that use torch later have one."""
    import torch

    torch.set_num_threads(count)
    if count > 1:
        beside = threading.Thread(target=torch.set_num_threads, args=(1,))
        beside.start()
        beside.join()


def _number() -> int:
    """Return torch's number of threads where the device is held."""
    global _count
    import torch

    with _lock:
        # If all threads were in use before, a different number now was set by the user.
        if not _count or hasattr(_here, "is_counted"):
            _count = torch.get_num_threads()
        return _count


class Shares:
    """Divides work on many tensors among as many threads as torch has here.

    A parallel region for each tensor would cost more than the work on a small one, and beside a busy process each
    region waits for a core.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    def each(self, work: "Callable[[list[Tensor]], list[Result]]", tensors: "Sequence[Tensor]") -> list[Result]:
        """Return one result per tensor, in order; `work` returns the results for a share of the tensors."""
        import torch

        count = torch.get_num_threads()
        if count == 1:
            return work(list(tensors))
        if self._executor is None:
            self._executor = single_threads(count, "shares")
        shares = _divided([tensor.numel() for tensor in tensors], count)
        done = self._executor.map(work, [[tensors[index] for index in share] for share in shares])
        results: list[Any] = [None] * len(tensors)
        for share, found in zip(shares, done, strict=True):
            for index, result in zip(share, found, strict=True):
                results[index] = result
        return results

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()
        self._executor = None


def _divided(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Return the indices of all sizes in `count` lists of about equal sums."""
    shares: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        lightest = sums.index(min(sums))
        shares[lightest].append(index)
        sums[lightest] += sizes[index]
    return shares
