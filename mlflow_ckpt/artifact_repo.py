"""Let every MLflow API that takes a URI take `ckpt:/<run_id>/<selector>[/<path>]`.

MLflow finds the class below by the entry point `ckpt` of the group `mlflow.artifact_repository`,
and imports this module in every process that imports MLflow. So it imports what MLflow has
imported by then, and everything else when a URI is first used.

    mlflow.artifacts.download_artifacts("ckpt:/<run_id>/best/MLmodel")
        -> CheckpointRepository("ckpt:/<run_id>/best").download_artifacts("MLmodel")

MLflow cuts a URI at its last slash, wherever that is. So a repository may begin above its
checkpoint, at it or inside it, and which it is is known only with the path of a call.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

# Beside store/ this is the only module that imports MLflow: MLflow asks for a subclass.
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.utils.file_utils import ArtifactProgressBar, create_tmp_dir

if TYPE_CHECKING:
    from mlflow_ckpt.address import Address
    from mlflow_ckpt.located import Located

# By this MLflow tells a process of `mlflow server`, in which it asks for the files of a model
# version with the server's own rights: `host_policy.is_tracking_server_process`.
_OF_A_SERVER = "_MLFLOW_SERVER_ARTIFACT_ROOT"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a path of a call means.

    Attributes:
        asked: The path's segments, as MLflow wrote them.
        inside: Path in the checkpoint.
    """

    located: Located
    asked: tuple[str, ...]
    inside: str

    def relative(self, path: str) -> str:
        """A path in the checkpoint as one in the repository."""
        inside = self.inside.split("/") if self.inside else []
        # All segments of the path that lie above the checkpoint, or those of the checkpoint
        # that lie above the repository.
        above = len(self.asked) - len(inside)
        return "/".join([*self.asked[: max(above, 0)], *path.split("/")[max(-above, 0) :]])


class CheckpointRepository(ArtifactRepository):
    """The files of the checkpoint that a `ckpt:/` URI names, verified, for reading alone.

    No request is made before something is asked. Then the selector is answered once.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._located: dict[Address, Located] = {}

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What lies directly in a folder, by the committed manifest; nothing for a file.

        Raises:
            CheckpointError: If the URI names no checkpoint.
        """
        place = self._place(path)
        prefix = f"{place.inside}/" if place.inside else ""
        found: dict[str, int | None] = {}
        for each, size in place.located.sizes().items():
            if each.startswith(prefix):
                name, slash, _ = each[len(prefix) :].partition("/")
                found[prefix + name] = None if slash else size
        infos = [FileInfo(place.relative(p), size is None, size) for p, size in found.items()]
        return sorted(infos, key=lambda info: str(info.path))

    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        """Copy a file, a folder or the whole of a checkpoint into the folder `dst_path`.

        Nothing appears there before all of it is verified.

        Returns:
            The absolute path of the copy.

        Raises:
            MlflowException: If there is no such file in the checkpoint, or no such folder here.
            IntegrityError: If a file is not the committed one.
            CheckpointError: If the URI names no checkpoint.
        """
        place = self._place(artifact_path)
        with _destination(dst_path) as folder:
            with place.located.copies(place.inside, folder, _bar) as copies:
                found = [p.relative_to(copies).as_posix() for p in _files(copies)]
                if not found:
                    raise _missing(artifact_path, place)
                for each in found:
                    _move(copies / each, folder / place.relative(each))
            return str(folder.joinpath(*place.asked))

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        place, target = self._place(remote_file_path), Path(local_path).absolute()
        with place.located.copies(place.inside, target.parent, _no_bar) as copies:
            if not (copies / place.inside).is_file():
                raise _missing(remote_file_path, place)
            _move(copies / place.inside, target)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> NoReturn:
        _refuse("save one with mlflow_ckpt.save(model), and log other files to the run itself")

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> NoReturn:
        _refuse("save one with mlflow_ckpt.save(model), and log other files to the run itself")

    def delete_artifacts(self, artifact_path: str | None = None) -> NoReturn:
        _refuse("delete whole ones with mlflow_ckpt.prune(run_id, keep)")

    def _place(self, path: str | None) -> _Place:
        from mlflow_ckpt.address import Address
        from mlflow_ckpt.located import Located

        if _OF_A_SERVER in os.environ:
            raise MlflowException(
                "A tracking server answers no ckpt:/ URI, whose checkpoint may be one that this "
                "user must not read. To register a checkpoint call "
                "mlflow_ckpt.register(run_id, which, name).",
                INVALID_PARAMETER_VALUE,
            )
        asked = tuple(s for s in (path or "").split("/") if unquote(s) not in ("", "."))
        if any(unquote(segment) == ".." for segment in asked):
            raise MlflowException(
                f"Expected a path without '..'. Received: {path!r}", INVALID_PARAMETER_VALUE
            )
        address = Address.parse("/".join([self.artifact_uri.rstrip("/"), *asked]))
        located = self._located.setdefault(address.whole, Located(address, self.tracking_uri))
        return _Place(located=located, asked=asked, inside=address.path)


def _refuse(instead: str) -> NoReturn:
    from mlflow_ckpt.errors import ConfigError

    raise ConfigError(f"The files of a checkpoint stay as they were committed: {instead}.")


def _missing(path: str | None, place: _Place) -> MlflowException:
    return MlflowException(
        f"No such artifact: {path!r}. The checkpoint has: {', '.join(place.located.sizes())}.",
        RESOURCE_DOES_NOT_EXIST,
    )


@contextmanager
def _destination(dst_path: str | None) -> Iterator[Path]:
    """The folder to copy to; one that is made for it goes again if that fails."""
    if dst_path:
        folder = Path(dst_path).absolute()
        if not folder.is_dir():
            raise MlflowException(
                f"Expected the folder {folder} to exist. Make it, or choose another dst_path.",
                INVALID_PARAMETER_VALUE if folder.exists() else RESOURCE_DOES_NOT_EXIST,
            )
        yield folder
        return
    made = create_tmp_dir()
    try:
        yield Path(made)
    except BaseException:
        shutil.rmtree(made)
        raise


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _bar(count: int) -> Any:
    """MLflow's own bar, which MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false switches off."""
    return ArtifactProgressBar.files(desc="Downloading artifacts", total=count)


def _no_bar(count: int) -> Any:
    return ArtifactProgressBar(desc="", total=count, step=1)
