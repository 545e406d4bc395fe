"""Row 6: `make tiny` in a fresh copy, the environment being ready."""

from bench.measure import Row, at_most, command, copy_of_the_repository, main, scratch


def measure(quick: bool) -> list[Row]:
    """Two fresh copies: DVC has no run of them in its cache."""
    seconds = []
    for _ in range(1 if quick else 2):
        with scratch() as folder:
            copy_of_the_repository(folder)
            seconds.append(command(folder, ["make", "-o", ".venv/.ready", "tiny"], cwd=folder))
    return [at_most(6, "`make tiny`", 45, seconds, "s")]


if __name__ == "__main__":
    main("tiny", measure)
