"""Row 9: the three preparations, from process start to files on the disk."""

from functools import partial

from bench.measure import Row, alternate, at_most, main, mnist, no_mnist, scratch, stage


def measure(quick: bool) -> list[Row]:
    """The images are the full MNIST."""
    full = mnist()
    with scratch() as folder:
        calls = {
            "text": partial(
                stage, folder, "prepare", "modality=text", f"output={folder}/text",
                f"plots={folder}/plots",
            ),
            "audio": partial(
                stage, folder, "prepare", "modality=audio", f"output={folder}/audio",
                f"audio.clips={100 if quick else 3000}", f"plots={folder}/plots",
            ),
        }  # fmt: skip
        if full:
            calls["image"] = partial(
                stage, folder, "prepare", "modality=image", "image=mnist", f"image.folder={full}",
                f"output={folder}/image", f"plots={folder}/plots",
                *(["profile=tiny"] if quick else []),
            )  # fmt: skip
        found = alternate(calls, 1 if quick else 3)
    what = {"image": "70,000 images", "text": "8,530 sentences", "audio": "3,000 clips"}
    rows = [
        at_most(9, f"prepare {what[name]}", limit, found[name], "s")
        for name, limit in (("image", 10), ("text", 3), ("audio", 8))
        if name in found
    ]
    return rows if full else [no_mnist(9, "prepare 70,000 images", "≤ 10 s"), *rows]


if __name__ == "__main__":
    main("prepare", measure)
