from pathlib import Path


def small(folder: Path) -> list[str]:
    """What makes the network of this task a small one, for tests of any task."""
    sizes = {"layers": 2, "width": 64, "block": 64, "context": 512, "writing.tokens": 8}
    return ["language_model=scratch", "tokens=null", "optimizer.lr=0.01",
            *(f"language_model.{name}={size}" for name, size in sizes.items())]  # fmt: skip
