from pathlib import Path


def small(folder: Path) -> list[str]:
    """What makes the network of this task a small one, for tests of any task."""
    from tests.workspace import encoder

    encoder(folder)
    return ["transformer=folder", f"transformer.name={folder}", "transformer.max_length=32",
            "optimizer.lr=0.01"]  # fmt: skip
