"""What Hydra may call and where it may read: what is its own, whatever a config says.

Hydra calls what a config names as a callback, a launcher, a sweeper or a logging handler; its own
list of forbidden names can't be complete. So the few names that it may call stand here.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from pipeline.errors import PipelineError
from pipeline.yaml_files import DEPTH, LENGTH

FLAGS = ("experimental_rerun", "config_path", "config_name", "config_dir")
"""Options that run a pickle or read config from elsewhere."""
EMPTY = ("callbacks", "searchpath", "job.env_set", "job.env_copy")
"""Settings that are there to call code, to read from elsewhere, to change the environment."""
CALLS = ("launcher", "sweeper", "job_logging", "hydra_logging")
"""Settings in which Hydra calls what a name or an address leads to."""
OWN = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "logging.StreamHandler",
    "ext://sys.stdout",
    "ext://sys.stderr",
    "logging.FileHandler",
    "${hydra.runtime.output_dir}/${hydra.job.name}.log",
    "hydra-${hydra.job.name}.log",
)


def overrides_of(arguments: list[str]) -> list[str]:
    """The overrides of a command line, without its options.

    Raises:
        PipelineError: an option, however it is abbreviated, is one of `FLAGS`; or an override is
            larger than any setting is.
    """
    parsed = get_args_parser().parse_args(arguments)
    for flag in FLAGS:
        if getattr(parsed, flag) is not None:
            raise PipelineError(
                f"--{flag.replace('_', '-')} (command line) runs code or reads config that is not "
                "in conf/; leave it out"
            )
    # those of a shell's completion say what to do with it
    overrides: list[str] = [] if parsed.shell_completion else parsed.overrides
    for one in overrides:  # before Hydra's parser, which goes down a level for each bracket
        levels = accumulate((c in "([{") - (c in ")]}") for c in one)
        if len(one) > LENGTH or max(levels, default=0) > DEPTH:
            raise PipelineError(
                f"{one[:40]}… (command line) has more than {LENGTH:,} characters or {DEPTH} "
                "levels; shorten it"
            )
    return overrides


class GuardedRepository(ConfigRepository):
    """Hydra's, which reads every file of config that is chosen."""

    @override
    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra's.

        Raises:
            PipelineError: the path leads out of conf/.
        """
        if ".." in config_path.split("/"):
            raise PipelineError(f"{config_path} is not in conf/; choose a file that is")
        return super().load_config(config_path)


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's, which composes every config, also those of a sweep's jobs and in their processes."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = GuardedRepository(config_search_path)

    @override
    def load_configuration(self, *arguments: Any, **named: Any) -> DictConfig:
        """As Hydra's.

        Raises:
            PipelineError: the config makes Hydra call or read what is not its own.
        """
        config = super().load_configuration(*arguments, **named)
        settings = OmegaConf.to_container(config.hydra)  # as it is written: `${…}` may call, too
        for key, value in _leaves(settings):
            named_code = key.rpartition(".")[2] in ("_target_", "()", "class", "filename")
            address = isinstance(value, str) and ("${" in value or "://" in value)
            calls = (named_code or address) and value not in OWN and _concerns(key, CALLS)
            if calls or (value is not None and _concerns(key, EMPTY)):
                raise PipelineError(
                    f"hydra.{key} is {value!r}, and config may not name code, other places of "
                    "config or variables to set; remove it"
                )
        return config


def install() -> None:
    """Let Hydra compose with `GuardedLoader`: it has no hook between composing and calling."""
    hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{step}" if key else str(step))
    else:
        yield key, value


def _concerns(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of the names, below one or, as a reference to a mapping, above one."""
    return any(f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in names)
