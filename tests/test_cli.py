"""The command line: names, exit codes, sentences, and nothing heavy loaded for help."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kd_mlflow.config import COMMANDS
from kd_mlflow.options import config_from, split_method_options
from tests.conftest import ROOT, make_place


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a `kd-mlflow` process ends up with."""
    program = (
        "import sys, json, kd_mlflow.cli as c\n"
        "try: c.cli.main(sys.argv[1:], standalone_mode=False)\n"
        "finally: print('\\n@' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    return set(json.loads(done.stdout.rpartition("@")[2]))


@pytest.mark.parametrize("arguments", [["--help"], *[[command, "--help"] for command in sorted(COMMANDS)]])
def test_help_loads_nothing_heavy(arguments):
    heavy = {"torch", "mlflow", "optuna", "sklearn", "matplotlib", "numpy"}
    assert loaded_by(*arguments) & heavy == set()


def test_importing_the_package_loads_nothing_heavy():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import kd_mlflow, sys; print(sorted(set(sys.modules) & {'torch', 'mlflow', 'pydantic'}))",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"


def test_every_field_is_an_option_and_help_names_it(place):
    text = place.run("distill", "--help")
    for name in set(COMMANDS["distill"].model_fields) - {"method_options"}:
        assert f"--{name.replace('_', '-')}" in text


def test_flags_take_a_value_or_none_and_have_a_negative():
    def parsed(*arguments: str) -> bool:
        from kd_mlflow.cli import cli

        command = cli.commands["distill"]
        with command.make_context("distill", ["--data", "x", *arguments]) as context:
            return config_from("distill", context.params).control

    assert parsed() is True
    assert parsed("--no-control") is False
    assert parsed("--control", "false") is False
    assert parsed("--control=true") is True
    assert parsed("--no-control", "false") is True
    assert parsed("--control", "") is True


def test_underscores_are_dashes_and_empty_values_are_not_given():
    from kd_mlflow.cli import SETTINGS, cli

    command = cli.commands["distill"]
    arguments = ["--data", "x", "--image_size", "64", "--temperature", "", "--preset", "", "--milestones", "3,5"]
    with command.make_context("distill", arguments, token_normalize_func=SETTINGS["token_normalize_func"]) as context:
        config = config_from("distill", context.params)
    assert (config.image_size, config.temperature, config.milestones) == (64, None, (3, 5))


BAD = [
    (["distill", "--nonsense", "1"], "nonsense"),
    (["distill", "--temperature", "abc"], "abc"),
    (["distill", "--temperature", "0"], "--temperature"),
    (["distill", "--preset", "fast"], "fast"),
    (["distill", "--config", "missing.yaml"], "missing.yaml"),
    (["distill", "--data", "nowhere/"], "nowhere"),
    (["distill", "--device", "cuda:99"], "cuda:99"),
    (["distill", "--student", "resnet1"], "resnet1"),
    (["distill", "--teacher", "models:/nobody@champion"], "nobody"),
    (["distill", "--teacher", "nothing-like-it"], "nothing-like-it"),
    (["distill", "--method", "magic"], "magic"),
    (["distill", "--kd-magic", "1"], "--kd-magic"),
    (["distill", "--kd-temperature", "-1"], "--kd-temperature"),
    (["distill", "--dkd-beta", "2"], "--dkd-beta"),
    (["distill", "--method", "dkd", "--alpha", "0.5"], "--alpha"),
    (["distill", "--method", "dml", "--teacher", "resnet18"], "--teacher"),
    (["distill", "--method", "dkd", "--teacher", "resnet18,resnet34"], "1 teacher, not 2"),
    (["methods", "magic"], "magic"),
    (["distill", "--data", "nowhere/", "--method", "magic"], "magic"),
    (["compare", "--json", "--csv"], "--csv"),
    (["search", "--search", "temperature=9:1"], "must go up"),
    (["search", "--status"], "no study"),
    (["search", "--status", "--stop"], "one of --status"),
    (["search", "--render", "slurm", "--study", "mine"], "--storage"),
    (["search-worker", "--storage", "sqlite:///none.db"], "--study"),
    (["distill", "--resume=" + "0" * 32], "0" * 32),
    (["evaluate"], "--model"),
    (["pull", "nobody@champion", "out"], "nobody"),
    (["predict", "no-such-folder", "image.png"], "no-such-folder"),
    (["export", "no-such-folder", "file.txt"], "file.txt"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each of them says: exit code and standard error, in one process that forks, since importing takes long."""
    place = make_place(tmp_path_factory.mktemp("bad") / "place")
    done = subprocess.run(
        [sys.executable, "-m", "tests.forks"], cwd=place.path, env=place.environment, text=True, check=True,
        input=json.dumps([arguments for arguments, _ in BAD]), stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(BAD)), ids=lambda number: " ".join(BAD[number][0]))
def test_bad_input_is_one_sentence_and_exit_code_two(said, number):
    code, err = said[number]
    assert code == 2, err
    assert BAD[number][1] in err
    assert "Traceback" not in err


def test_bad_input_is_the_same_in_a_process_of_its_own(place):
    assert "resnet1" in place.run("distill", "--student", "resnet1", code=2)


def test_a_methods_own_options_are_read_wherever_they_stand():
    rest, found = split_method_options(
        ["--dkd-beta", "2", "--data", "x", "--kd_temperature=3", "--kdfm-joint", "--resume", "--at-beta", ""],
        {"--data"},
    )
    assert rest == ["--data", "x", "--resume"]
    assert found == {"dkd": {"beta": "2"}, "kd": {"temperature": "3"}, "kdfm": {"joint": "true"}}


def test_completion_offers_commands_and_options(place):
    def completed(words: str, count: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from kd_mlflow.cli import main; main()"],
            env={
                **place.environment,
                "_KD_MLFLOW_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(count),
            },
            capture_output=True,
            text=True,
            cwd=place.path,
        )
        return done.stdout

    assert "plain,distill" in completed("kd-mlflow di", 1)
    assert "--temperature" in completed("kd-mlflow distill --temp", 2)
    assert "plain,paper" in completed("kd-mlflow distill --preset pa", 3)


def test_runs_of_an_empty_store_are_an_empty_list(place):
    assert json.loads(place.run("runs", "--json")) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_strikes_in_a_finaliser_still_ends_the_command(name):
    """Python drops what is raised there; the command must not go on as if nothing had been said."""
    program = (
        "import signal, time, kd_mlflow.cli as c\n"
        "class Lost:\n"
        f"    def __del__(self): signal.raise_signal(signal.{name}); sum(range(99))\n"
        "@c.cli.command()\n"
        "def wait():\n"
        "    Lost()\n"
        "    print('lost', flush=True)\n"
        "    time.sleep(60)\n"
        "c.main(['wait'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert (done.returncode, done.stdout) == (130, "lost\n"), done.stderr
