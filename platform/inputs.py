"""What came with a job is kept in the store: the job's folder is thrown away, and another may resume the run."""

import glob
import hashlib
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from sftray.platform.run_directory import TOKENS, is_job
from sftray.train_fn.bucket_path import BucketPath
from sftray.train_fn.config_file import Resolved
from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.files import find_files
from sftray.train_fn.local_copies import upload_folder
from sftray.train_fn.places import as_path, find_bucket

_INPUTS = "inputs"  # beside the tokens, by their content


def keep_inputs(resolved: Resolved, store: Path) -> Resolved:
    """A config whose paths are absolute; in a job, those below its folder become paths of copies in the store.

    Raises:
        DataError: a file of the data is missing.
        StoreError: the store cannot be written.
    """
    if not is_job():
        return resolved
    root, config = store / TOKENS / _INPUTS, resolved.config
    data: dict[str, object] = {}
    for key in ("train", "validation"):
        value = getattr(config.data, key)
        if isinstance(value, str | list):
            data[key] = _keep_data([value] if isinstance(value, str) else value, f"data.{key}", root)
    model = {
        key: str(_keep(Path(value), root))
        for key in ("name", "tokenizer", "chat_template")
        if (value := getattr(config.model, key)) and _is_of_job(value)
    }
    kept = {"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)}
    return replace(resolved, config=config.model_copy(update=kept))


def _keep_data(paths: list[str], key: str, root: Path) -> list[str]:
    kept: list[str] = []
    for path in paths:
        if "://" in path or not _is_of_job(path):
            kept.append(path)
        else:
            kept += [str(_keep(file, root)) for file in find_files(path, key)]
    return kept


def _is_of_job(path: str) -> bool:
    here = os.getcwd()
    return any(path.startswith(f"{start}{os.sep}") for start in (here, glob.escape(here)))


def _keep(path: Path, root: Path) -> Path:
    """The copy of a file or a folder; made unless there is one."""
    target = root / _digest(path) / path.name
    if (there := find_bucket(target)) is not None:
        return _upload(path, there)
    if target.exists():
        return target
    draft = root / f".draft-{uuid.uuid4().hex[:12]}"
    try:
        draft.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, draft / path.name)
        else:
            shutil.copyfile(path, draft / path.name)
        try:
            draft.rename(target.parent)
        except OSError:
            if not target.exists():  # else another job was faster
                raise
            shutil.rmtree(draft)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        what = f"{path.name} cannot be kept in the store: {error.strerror}"
        raise StoreError(Problem(what, str(target), fix="make room there")) from error
    return target


def _upload(path: Path, target: BucketPath) -> Path:
    """A mark beside the copy, put last, says that it is whole."""
    mark = target.with_name(f"{target.name}.whole")
    if not mark.exists():
        if path.is_dir():
            upload_folder(path, target)
        else:
            target.bucket.upload(path, target.key)
        mark.touch()
    return as_path(str(target))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.relative_to(path.parent)} {content} ".encode())
    return digest.hexdigest()[:16]
