"""How many processes train together, and which of them this one is.

torchrun and `accelerate launch` say so in five variables, which count only together. Others would
believe a single one that another tool has left.
"""

import os
import sys

from pipeline.errors import PipelineError

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Of processes that `mpirun` started; they can't find each other by these."""
_ADVICE = "start them with torchrun, or unset these variables"


def local_processes() -> int:
    """How many of the processes that train together are on this machine, and share its cores.

    torchrun and `accelerate launch` say so; where nobody does, it is 1.
    """
    said, processes = os.environ.get("LOCAL_WORLD_SIZE", ""), shard()[1]
    return min(max(int(said), 1), processes) if said.isdecimal() else 1


def shard() -> tuple[int, int]:
    """(rank, processes) of data-parallel training; (0, 1) of a process that trains alone.

    Variables that are not the whole set are removed with a warning, so that nobody believes them.

    Raises:
        PipelineError: they ask for several processes, which can't find each other.
    """
    given = {name: os.environ[name] for name in (*LAUNCHED, *MPI_SIZES) if name in os.environ}
    missing = [name for name in LAUNCHED if not given.get(name)]
    if not missing:
        numbers = [given[name] for name in LAUNCHED if name != "MASTER_ADDR"]
        if all(map(str.isdecimal, numbers)):
            rank, _, processes, port = map(int, numbers)
            if rank < processes and port <= 65535:
                return rank, processes
        values = " ".join(f"{name}={given[name]}" for name in LAUNCHED)
        raise PipelineError(f"{values} (environment) is no process of several; {_ADVICE}")
    for name in ("WORLD_SIZE", *MPI_SIZES):
        if given.get(name, "").isdecimal() and int(given[name]) > 1:
            raise PipelineError(
                f"{name}={given[name]} (environment) asks for several processes, and there is "
                f"no {', '.join(missing)}; {_ADVICE}"
            )
    if given:
        for name in given:
            del os.environ[name]
        print(
            f"warning: {', '.join(given)} (environment) ignored: no launcher has set all of "
            f"{', '.join(LAUNCHED)}",
            file=sys.stderr,
        )
    return 0, 1
