"""GPU work recorded once as a CUDA graph and replayed, so that its thousands of kernels start without the host.

On a fast card the host launches the kernels of a small batch more slowly than the card runs them. A replay uses the
same addresses each time: inputs are copied into the recorded ones, weights and moments stay in place.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Calls before the recording: libraries choose their kernels and workspaces in the first ones, and the moments are
# created.
NUM_PLAIN_CALLS = 3


class CapturedWork:
    """Runs `work`, a function of tensors that may change others in place: first normally, then as replays.

    All calls must have inputs of the same shapes. The next call overwrites the outputs.
    """

    def __init__(self, work: "Callable[[Sequence[Tensor]], Sequence[Tensor]]") -> None:
        self._work = work
        self._num_calls = 0
        # One stream for all calls: autograd remembers the stream on which a weight's gradient was first made.
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, inputs: "Sequence[Tensor]") -> "Sequence[Tensor]":
        """Do the work on these inputs, and return its result."""
        import torch

        self._num_calls += 1
        self._stream = self._stream or torch.cuda.Stream()
        if self._num_calls <= NUM_PLAIN_CALLS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                outputs = self._work(inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return outputs
        if self._graph is None:
            self._inputs = [tensor.clone() for tensor in inputs]
            self._graph = torch.cuda.CUDAGraph()
            # Recording computes nothing: the replay below is this call's only execution.
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outputs = self._work(self._inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._outputs
