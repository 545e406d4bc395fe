from pathlib import Path


def small(_folder: Path) -> list[str]:
    """What makes the network of this task a small one, for tests of any task."""
    return ["detector.channels=[8,16]", "detector.depth=[1,1]", "detector.neck=16",
            "optimizer.lr=0.03"]  # fmt: skip
