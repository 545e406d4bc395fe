"""The store that tests of served models log to."""

from tests.tracking.conftest import (  # noqa: F401
    _environment,
    _store,
    client,
    settings,
    workspace,
)
