"""What a training run takes of a GPU's memory, by parts; torch-free. `nemorun.llm.peak` estimates it."""

from __future__ import annotations

from dataclasses import dataclass, fields

GIB = 2**30
OUTSIDE = 2.0 * GIB
"""What a GPU holds beside torch's allocator: CUDA's context and kernels, NCCL's buffers. On H100s and H200s
it was 1.3 GiB with one GPU and 2.0 with two (docs/performance.md); `scripts/bench/memory.py` prints it."""
WORKSPACE = 2 * 32 * 2**20
"""cuBLAS's own, of the thread that goes forward and the one that goes backward: 32 MiB each on Hopper (its
documentation, CUBLAS_WORKSPACE_CONFIG). They are taken from torch's allocator."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds at the moment when it holds most, by what they are for."""

    moment: str
    """When that is."""
    weights: float = 0.0
    """This rank's part, as the optimizer keeps them; what is frozen in the type that is computed in."""
    moments: float = 0.0
    """The optimizer's running means."""
    gradients: float = 0.0
    """Summed, in float32; and of one unit on their way there."""
    gathered: float = 0.0
    """Weights gathered for use, and FSDP's buffers."""
    activations: float = 0.0
    """What is kept of all blocks for the backward pass."""
    working: float = 0.0
    """What a block needs for its own backward pass."""
    loss: float = 0.0
    """Logits, and the gradients of the head that come with them."""
    pipeline: float = 0.0
    """What other stages send."""
    drawn: float = 0.0
    """First weights, before this rank takes its part."""
    workspace: float = WORKSPACE
    stage: int = 0
    """The pipeline rank that holds most."""

    @property
    def total(self) -> float:
        return sum(part for _, part in self.parts())

    def parts(self) -> list[tuple[str, float]]:
        """Names and bytes, as they are declared."""
        names = [field.name for field in fields(self) if field.name not in ("moment", "stage")]
        return [(name, getattr(self, name)) for name in names]

    def describe(self) -> str:
        """`47.9 GiB a GPU (weights 15.0, moments 15.0, …)`: the parts that are a hundredth at least."""
        largest = sorted(self.parts(), key=lambda part: -part[1])
        shown = [f"{name} {size / GIB:.1f}" for name, size in largest if size >= self.total / 100]
        return f"{self.total / GIB:.1f} GiB a GPU ({', '.join(shown)})"
