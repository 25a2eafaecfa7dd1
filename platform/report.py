"""The report of a run or of a sweep: one HTML file in its directory, which opens without a network."""

from pathlib import Path

from sftray.platform.report_page import render_page
from sftray.platform.results import find_run
from sftray.platform.sweep_files import find_sweep, is_sweep
from sftray.train_fn.errors import Problem, StoreError
from sftray.train_fn.places import write_whole

REPORT = "report.html"


def find_folder(name_or_path: str, store: str = "./runs") -> Path:
    """The directory of a sweep or a run, given by its path or by its name in `store`.

    Raises:
        ConfigError: there is neither; the nearest names are told.
    """
    return find_sweep(name_or_path, store) or find_run(name_or_path, store)


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of the run or the sweep in `folder`, and return where it is: `output`, or in the folder.

    Raises:
        StoreError: it cannot be written there.
    """
    from sftray.platform.report_run import build_run_page
    from sftray.platform.report_sweep import build_sweep_page

    page = build_sweep_page(folder) if is_sweep(folder) else build_run_page(folder)
    target = output or folder / REPORT
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A damaged file may hold half a character, which UTF-8 cannot say.
        write_whole(target, render_page(page).encode(errors="backslashreplace"))
    except StoreError:  # a bucket's, which says it itself
        raise
    except OSError as error:
        raise StoreError(
            Problem(
                f"the report cannot be written: {error.strerror}",
                where=str(target),
                fix="--output PATH: a file that this user may write",
            )
        ) from error
    return target
