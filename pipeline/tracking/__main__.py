"""`python -m pipeline.tracking sync`: send what stages could not send; `make sync`."""

import sys

from pipeline.tracking.journal import root
from pipeline.tracking.send import Senders, quiet


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 when the store has everything."""
    if arguments != ["sync"]:
        print(__doc__, file=sys.stderr)
        return 2
    quiet()
    senders = Senders(root() / ".tracking")
    sent = senders.send_leftovers(wait=60)
    left = senders.leftovers()
    print(f"{sent} run(s) sent, {len(left)} pending")
    for journal, begin in left:
        print(f"{journal.folder} for {begin['uri']}: {journal.state().error or 'not sent'}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
