"""Services that score, under names that expressions can use: `--remote-reward NAME=URL`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FILES = (".yaml", ".yml", ".json")


def name_remote_reward(given: str) -> None:
    """Registers the remote reward that an option describes.

    Args:
        given: "NAME=URL", or "NAME=FILE" of the options of a `RemoteReward`, in YAML or JSON.

    Raises:
        ValueError: it has another form, the name belongs to another reward, or an option is refused.
        ForeignFileError: the file cannot be read.
    """
    from ..rewards import REWARDS, register_reward
    from ..rewards.remote.forms import remote_reward

    name, equals, source = given.partition("=")
    if not equals or not name.isidentifier():
        # A URL without a name may hold what is not to be seen.
        raise ValueError("--remote-reward is of another form; give NAME=URL, such as judge=http://localhost:8000")
    options = _read(Path(source)) if source.lower().endswith(FILES) else {"url": source}
    if name in REWARDS.aliases:
        raise ValueError(f"--remote-reward names {name!r}, which is another name of a reward; choose another one")
    register_reward(name)(remote_reward(name, options))


def _read(path: Path) -> Mapping[str, object]:
    from ..files.foreign import ForeignFileError, read_json
    from ..files.yaml_files import read_yaml

    remedy = "give a file with a 'url' and other options of a remote reward"
    options = (read_json if path.suffix.lower() == ".json" else read_yaml)(path, remedy)
    if not isinstance(options, Mapping):
        raise ForeignFileError(f"--remote-reward is '{path}', which holds no options; {remedy}")
    return options
