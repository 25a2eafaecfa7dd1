"""The command line: exit codes, the shape of errors, and what a command must not import to say hello."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from run_dirs import write_finished_run, write_run

from sftray.platform.cli import main
from sftray.platform.exits import run_guarded
from sftray.train_fn.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    DivergedError,
    Problem,
    StoppedError,
    StoreError,
    UserError,
)

Capture = pytest.CaptureFixture[str]


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def run_python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]  # options vary


def test_the_command_line_imports_nothing_heavy() -> None:
    code = """
import sys
from sftray.platform.cli import main
code = main(["--help"])
heavy = {"torch", "ray", "transformers", "pandas", "numpy", "pyarrow", "wandb", "yaml", "pydantic", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
sys.exit(code)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in ("train", "resume", "plan", "runs", "chat"))


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["plan"], ["resume"], ["chat"], ["runs", "list"], ["runs", "show"], ["convert", "minimind"]],
)
def test_every_command_has_help(arguments: list[str], capsys: Capture) -> None:
    assert main([*arguments, "--help"]) == 0
    assert f"Usage: sftray {' '.join(arguments)}" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sftray {version('sftray')}\n"


def test_no_command_is_a_usage_error_with_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["trian", "x.yaml"], "No such command 'trian'. Did you mean 'train'?", "sftray --help"),
        (["train"], "Missing argument 'CONFIG'.", "sftray train --help"),
        (["runs", "list", "--limti", "3"], "No such option: --limti", "sftray runs list --help"),
        (["runs", "list", "--limit", "0"], "Invalid value for '--limit'", "sftray runs list --help"),
        (["runs"], "Missing command.", "sftray runs --help"),
        (["train", "no-such.yaml"], "there is no config file and no preset no-such.yaml.", None),
        (["chat", "no-such-run"], "there is no run no-such-run.", None),
        (["runs", "show", "no-such-run"], "there is no run no-such-run.", None),
        (["resume", "no-such-run"], "there is no run no-such-run.", None),
    ],
)
def test_usage_errors(arguments: list[str], what: str, fix: str | None, capsys: Capture) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error  {what}")
    if fix is not None:
        assert said.err.endswith(f"\n  fix  {fix}\n")


def test_usage_errors_as_json(capsys: Capture) -> None:
    assert main(["runs", "list", "--json", "--nonsense"]) == 2
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["exit_code"] == 2
    assert list(answer["error"][0]) == ["what", "where", "why", "fix"]
    assert "--nonsense" in answer["error"][0]["what"]
    assert said.err.startswith("error  No such option: --nonsense")


def test_all_problems_of_a_config_at_once(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {nam: x}\ndata: {train: y}\noptim: {learning_rate: fast}\n")
    assert main(["plan", str(config), "train.epohcs=3", "--json"]) == 2
    said = capsys.readouterr()
    problems = json.loads(said.out)["error"]
    assert [problem["where"] for problem in problems] == [
        f"{config}:1",
        f"{config}:3",
        "command line: train.epohcs=3",
    ]
    assert said.err.count("error  ") == 3


def test_settings_before_the_config(capsys: Capture) -> None:
    assert main(["train", "optim.learning_rate=1e-4"]) == 2
    assert "CONFIG comes first" in capsys.readouterr().err


def test_no_store(tmp_path: Path, capsys: Capture) -> None:
    assert main(["runs", "list", "--store", str(tmp_path / "none")]) == 4
    assert "there is no store at" in capsys.readouterr().err


def test_a_run_without_checkpoints_cannot_talk(tmp_path: Path, capsys: Capture) -> None:
    folder = write_run(tmp_path).folder
    assert main(["chat", str(folder), "--ask", "hello"]) == 7
    assert "this run has no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["-1", "last", "1.5", ""])
def test_a_step_that_is_none(tmp_path: Path, step: str, capsys: Capture) -> None:
    folder = write_finished_run(tmp_path).folder
    assert main(["chat", str(folder), "--ask", "hello", "--step", step]) == 2
    assert "is no step" in capsys.readouterr().err


def test_runs_are_listed(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rate in (("a", 3e-4), ("b", 1e-4), ("c", 2e-4)):
        write_finished_run(tmp_path, name, [f"optim.learning_rate={rate}"])
    arguments = ["runs", "list", "--store", str(tmp_path), "--sort", "optim.learning_rate", "--limit", "2"]
    assert main([*arguments, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["config.optim.learning_rate"]) for run in listed] == [("b", 1e-4), ("c", 2e-4)]
    monkeypatch.setenv("COLUMNS", "100")
    assert main(arguments) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "b", "c"]


def test_the_default_store_is_where_one_stands(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_finished_run(tmp_path / "runs", "alpha")
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "show", "alpha", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["name"] == "alpha"
    assert main(["runs", "show", "runs/alpha"]) == 0
    assert capsys.readouterr().out.startswith("alpha  finished\n")


def test_an_unknown_column(tmp_path: Path, capsys: Capture) -> None:
    write_finished_run(tmp_path)
    assert main(["runs", "list", "--store", str(tmp_path), "--sort", "trian/loss"]) == 2
    assert "Did you mean train/loss?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        *((ConfigError, 2), (DataError, 3), (StoreError, 4), (ClusterError, 5)),
        *((DivergedError, 6), (CheckpointError, 7), (StoppedError, 75)),
    ],
)
def test_exit_codes_and_shape_of_what_the_user_caused(kind: type[UserError], code: int, capsys: Capture) -> None:
    problems = [Problem("first", "a.yaml:1", "reason", "mend"), Problem("second [bold]\x1b[31m")]
    assert run_guarded(raising(kind(*problems)), as_json=True) == code
    said = capsys.readouterr()
    assert said.err == "error  a.yaml:1: first\n  why  reason\n  fix  mend\nerror  second [bold]\\x1b[31m\n"
    assert json.loads(said.out) == {
        "error": [
            {"what": "first", "where": "a.yaml:1", "why": "reason", "fix": "mend"},
            {"what": "second [bold]\x1b[31m", "where": None, "why": None, "fix": None},
        ],
        "exit_code": code,
    }


def test_without_json_standard_output_is_left_alone(capsys: Capture) -> None:
    assert run_guarded(raising(ConfigError(Problem("wrong"))), as_json=False) == 2
    assert capsys.readouterr().out == ""


def test_long_lines_are_not_broken(capsys: Capture) -> None:
    path = "/a" * 200
    run_guarded(raising(ConfigError(Problem("wrong", path))), as_json=False)
    assert capsys.readouterr().err == f"error  {path}: wrong\n"


def test_an_interrupt(capsys: Capture) -> None:
    assert run_guarded(raising(KeyboardInterrupt()), as_json=False) == 130
    assert capsys.readouterr().err == "error  interrupted\n"


def test_sigterm_is_an_interrupt_and_lets_go_of_what_is_held(capsys: Capture) -> None:
    held, before = ["a cluster"], signal.getsignal(signal.SIGTERM)

    def wait() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
            return 0
        finally:
            held.clear()

    assert run_guarded(wait, as_json=False) == 130
    assert capsys.readouterr().err == "error  interrupted\n  why  SIGTERM\n"
    assert not held and signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_left_behind_does_not_hold_the_end_up() -> None:
    """Nor does the interpreter take itself apart under its thread: what would be called then is not."""
    code = """
import atexit, sys, threading
from sftray.platform.exits import DRIVER, leave
threading.Thread(target=threading.Event().wait, name=sys.argv[1].format(DRIVER), daemon=True).start()
atexit.register(print, "taken apart")
print("told")
leave(75)
"""
    for name, said in (("{}", "told\n"), ("another", "told\ntaken apart\n")):
        ended = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (75, said), ended.stderr


def test_our_bug_leaves_its_traceback_in_a_file(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_guarded(raising(ZeroDivisionError("secret \n second line")), as_json=True) == 70
    said = capsys.readouterr()
    (crash,) = tmp_path.iterdir()
    assert crash.name.startswith("sftray-crash-")
    assert crash.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in crash.read_text()
    assert "ZeroDivisionError: secret" in crash.read_text()
    (problem,) = json.loads(said.out)["error"]
    assert (problem["what"], problem["where"]) == ("our bug: ZeroDivisionError: secret", str(crash))
    assert "Traceback" not in said.err
    assert "second line" not in said.err


def test_our_bug_is_told_where_no_file_can_be_written(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run_guarded(raising(ValueError()), as_json=False) == 70
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error  our bug: ValueError\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_a_closed_pipe_is_no_error(tmp_path: Path, extra: list[str]) -> None:
    for number in range(3):
        write_finished_run(tmp_path, f"run-{number}")
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from sftray.platform.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "runs", "list", "--store", str(tmp_path), *extra]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_an_encoding_that_cannot_say_it(tmp_path: Path) -> None:
    write_finished_run(tmp_path, settings=["tracking.tags=[中文]"])
    code = "import sys; from sftray.platform.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for extra in ([], ["--json"]):
        done = run_python(code, "runs", "show", str(tmp_path / "alpha"), *extra, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["config"]["tracking.tags"] == ["中文"]
