"""What makes a folder a run directory. Nothing is read, so that a command can say at once that it is none."""

from pathlib import Path

from scalar_sae.errors import UserError


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / "config.yaml").is_file() and (folder / "lm").is_dir()


def run_folder(path: str | Path) -> Path:
    """The folder of a run.

    Raises:
        UserError: it is not a run directory.
    """
    folder = Path(path).expanduser()
    if not is_run(folder):
        raise UserError(f"{path}: not a run directory (it has no config.yaml and lm/); load_saes reads single SAEs")
    return folder
