"""What of this machine travels with a job: what the config names by relative paths, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftray.platform.bundle import LIMIT_BYTES, plan_bundle
from sftray.train_fn.errors import ConfigError
from sftray.train_fn.files import find_files

ROW = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, its data, and things that are nobody's business."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.jsonl", "data/b.jsonl", "data/secret.pem", ".env", ".git/config", "key.pem", "space.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROW)
    write_config(tmp_path / "run.yaml")
    return tmp_path


def write_config(path: Path, **data: Any) -> None:
    config = {
        "model": {"scratch": {"architecture": "llama", "hidden_size": 8}, "tokenizer": "quickstart"},
        "data": {"train": "data/*.jsonl", **data},
        "store": {"path": "/mnt/runs"},
    }
    path.write_text(yaml.safe_dump(config))


def find_problems(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_bundle(arguments)
    return "\n".join(f"{each.what} / {each.why} / {each.fix}" for each in caught.value.problems)


def test_a_file_of_weights_travels_and_one_that_is_not_there_is_missed(here: Path) -> None:
    write_config(here / "run.yaml")
    given = ["train", "run.yaml", "model.scratch=null", "model.name=out/in.pth", "name=mine"]
    given.append("model.tokenizer=quickstart")
    assert "model.name: nothing is at out/in.pth" in find_problems(*given)
    (here / "out").mkdir()
    (here / "out" / "in.pth").write_bytes(b"weights")
    bundle = plan_bundle(given)
    assert "out/in.pth" in bundle.files and not bundle.elsewhere
    given[3] = "model.name=/shared/in.pth"
    assert plan_bundle(given).elsewhere == ["/shared/in.pth"]


def test_the_config_and_what_it_names_travel_and_nothing_else(here: Path, tmp_path: Path) -> None:
    bundle = plan_bundle(["train", "run.yaml", "name=mine", "optim.learning_rate=1e-3"])
    assert sorted(bundle.files) == ["data/a.jsonl", "data/b.jsonl", "run.yaml"]
    assert (
        bundle.arguments == ["train", "run.yaml", "name=mine", "optim.learning_rate=1e-3"] and bundle.name == "mine"
    )
    bundle.write(target := tmp_path / "target")
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == sorted(
        bundle.files
    )
    assert (target / "data" / "a.jsonl").read_text() == ROW


def test_the_files_that_travel_are_those_that_the_run_would_find(here: Path) -> None:
    for name in ("data/x/c.jsonl", "data/x/y/d.jsonl", "data/x/private/key.pem"):
        (here / name).parent.mkdir(exist_ok=True, parents=True)
        (here / name).write_text(ROW)
    write_config(here / "run.yaml", train="data/**/*.jsonl")
    found = sorted(str(path) for path in find_files("data/**/*.jsonl", "data.train"))
    assert found == ["data/a.jsonl", "data/b.jsonl", "data/x/c.jsonl", "data/x/y/d.jsonl"]
    assert sorted(plan_bundle(["train", "run.yaml"]).files) == [*found, "run.yaml"]


def test_absolute_paths_are_those_of_the_cluster(here: Path) -> None:
    write_config(here / "run.yaml", train=["/mnt/data/big.jsonl", "data/a.jsonl"], validation="/mnt/data/val.jsonl")
    bundle = plan_bundle(["train", "run.yaml"])
    assert sorted(bundle.files) == ["data/a.jsonl", "run.yaml"]
    assert bundle.elsewhere == ["/mnt/data/big.jsonl", "/mnt/data/val.jsonl"]


def test_a_space_and_a_config_of_elsewhere_travel_under_their_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    config, space = str(here / "run.yaml"), "--space=../space.yaml"
    write_config(here / "run.yaml", train="/mnt/a.jsonl", validation=0.1)
    bundle = plan_bundle(["tune", config, space, "--trials", "4", "name=s"])
    assert bundle.arguments == ["tune", "run.yaml", "--space=space.yaml", "--trials", "4", "name=s"]
    assert bundle.files == {"run.yaml": Path(config), "space.yaml": Path("../space.yaml")}


def test_a_preset_needs_nothing_of_this_machine(here: Path) -> None:
    for name in ("quickstart", "minimind"):  # folders of the name of what ships
        (here / name).mkdir()
        (here / name / "tokenizer.json").write_text("{}")
        assert plan_bundle(["train", name, "store.path=s3://runs/here"]).files == {}
    bundle = plan_bundle(["train", "quickstart", "store.path=s3://runs/here"])
    assert bundle.files == {} and bundle.elsewhere == []


def test_resume_takes_the_clusters_own_run(here: Path) -> None:
    bundle = plan_bundle(["resume", "/mnt/runs/mine/", "optim.learning_rate=1e-4"])
    assert bundle.files == {} and bundle.name == "mine"
    assert bundle.arguments == ["resume", "/mnt/runs/mine/", "optim.learning_rate=1e-4"]
    assert bundle.place == "/mnt/runs/mine"
    by_name = plan_bundle(["resume", "mine", "--store", "/mnt/runs"])
    assert (by_name.name, by_name.place) == ("mine", "/mnt/runs/mine")


@pytest.mark.parametrize("options", ["", "?region=eu-central-1", "?endpoint_override=http://host:9000&region=here"])
def test_a_run_in_a_bucket_has_its_own_name_whatever_options_its_url_has(options: str, here: Path) -> None:
    url = f"s3://bucket/runs/mine{options}"
    bundle = plan_bundle(["resume", url])
    assert (bundle.name, bundle.place) == ("mine", url)
    started = plan_bundle(["train", "quickstart", f"store.path=s3://bucket/runs{options}", "name=mine"])
    assert started.place == url, "the one that is resumed is the one that was started"


def test_the_same_asked_for_again_has_the_same_name_and_other_data_has_another(here: Path) -> None:
    names = [plan_bundle(["train", "run.yaml"]).name, plan_bundle(["train", "run.yaml"]).name]
    names.append(plan_bundle(["train", "run.yaml", "train.seed=2"]).name)
    (here / "data" / "a.jsonl").write_text(ROW * 2)
    names.append(plan_bundle(["train", "run.yaml"]).name)
    assert names[0] == names[1] and len(set(names)) == 3
    assert plan_bundle(["train", "run.yaml"]).arguments[-1] == f"name={names[-1]}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "run.yaml", "store.path=runs"],
            "store.path: runs is relative, and a job's own folder is thrown away",
        ),
        (["train", "run.yaml", "data.train=../data/a.jsonl"], "leads out of this folder"),
        (["train", "run.yaml", "data.train=~/a.jsonl"], "leads out of this folder"),
        (["train", "run.yaml", "data.train=data/c.jsonl"], "data.train: no file data/c.jsonl. Did you mean data/"),
        (["train", "run.yaml", "data.train=none/*.jsonl"], "data.train: none/*.jsonl matches no file"),
        (["train", "run.yaml", "data.train=data"], "data.train: data is a folder"),
        (["train", "run.yaml", "data.train=data/*"], "data/secret.pem has an extension that is not known"),
        (["train", "nothing.yaml"], "there is no config file and no preset nothing.yaml"),
        (["train", "run.yaml", "optim.lr=1"], "optim.lr is not a setting"),
        (["tune", "run.yaml", "--trails", "4"], "No such option: --trails"),
        (["train"], "Missing argument 'CONFIG'"),
        (["resume", "runs/mine"], "runs/mine is a path of this machine"),
        (["resume", "mine", "--store", "runs"], "the job looks for the run where the cluster has it"),
        (["chat", "run"], "train, tune, resume, not chat"),
        ([], "behind -- comes a command"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(arguments: list[str], said: str, here: Path) -> None:
    assert said in find_problems(*arguments)


def test_too_much_is_refused_with_the_largest(here: Path) -> None:
    with (here / "data" / "a.jsonl").open("ab") as file:
        file.truncate(LIMIT_BYTES)
    said = find_problems("train", "run.yaml")
    assert "90 MB would travel with the job, and 90 MB may" in said and "the largest: data/a.jsonl 90 MB" in said


def test_of_a_folder_with_a_model_only_what_it_is_loaded_from_travels(here: Path) -> None:
    for name in ("model/config.json", "model/.cache/blob.json", "model/tokenizer/tokenizer.json", "model/id_ed25519"):
        (here / name).parent.mkdir(exist_ok=True, parents=True)
        (here / name).write_text("{}")
    config = {"model": {"name": "model"}, "data": {"train": "data/a.jsonl"}, "store": {"path": "/mnt/runs"}}
    (here / "run.yaml").write_text(yaml.safe_dump(config))
    bundle = plan_bundle(["train", "run.yaml"])
    assert sorted(bundle.files) == ["data/a.jsonl", "model/config.json", "model/tokenizer/tokenizer.json", "run.yaml"]
