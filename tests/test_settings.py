"""The environment and `.env`, read once and in one place."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from dreambooth import environment as module
from dreambooth.environment import Secret, Settings, load_settings
from dreambooth.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parent.parent / ".env.example"


def test_nothing_set_gives_the_defaults() -> None:
    expected = Settings(data_dir=Path.cwd() / "outputs", token=None, auth=None, host="127.0.0.1", port=7860)
    assert load_settings(env={}) == expected


def test_every_variable_is_read(tmp_path: Path) -> None:
    env = {
        "DREAMBOOTH_HOME": str(tmp_path),
        "HF_TOKEN": " hf_abc ",
        "DREAMBOOTH_AUTH": "ann:pass:word",
        "DREAMBOOTH_HOST": "0.0.0.0",
        "DREAMBOOTH_PORT": "8080",
    }
    settings = load_settings(env=env)
    assert settings.data_dir == tmp_path
    assert settings.token is not None
    assert settings.token.reveal() == "hf_abc"
    assert settings.auth is not None
    assert (settings.auth[0], settings.auth[1].reveal()) == ("ann", "pass:word")
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("DREAMBOOTH_PORT=1111\nDREAMBOOTH_HOST=ten.example\nHF_TOKEN=\n")
    settings = load_settings(env={"DREAMBOOTH_PORT": "2222"}, dotenv=dotenv)
    assert (settings.port, settings.host, settings.token) == (2222, "ten.example", None)


def test_all_mistakes_are_told_at_once_and_the_password_is_not(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    env = {"DREAMBOOTH_PORT": "70000", "DREAMBOOTH_AUTH": "hunter2", "DREAMBOOTH_HOME": str(file)}
    with pytest.raises(ConfigError) as caught:
        load_settings(env=env)
    assert [problem.field for problem in caught.value.problems] == [
        "DREAMBOOTH_HOME",
        "DREAMBOOTH_AUTH",
        "DREAMBOOTH_PORT",
    ]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["x", "0", "-1", "65536", "80.0", "\u0663"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="DREAMBOOTH_PORT"):
        load_settings(env={"DREAMBOOTH_PORT": text})


def test_a_space_keeps_its_data_in_its_storage_when_it_has_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPACE_STORAGE", tmp_path)
    assert load_settings(env={"SPACE_ID": "ann/studio"}).data_dir == tmp_path
    assert load_settings(env={}).data_dir == Path.cwd() / "outputs"
    monkeypatch.setattr(module, "SPACE_STORAGE", tmp_path / "absent")
    space = load_settings(env={"SPACE_ID": "ann/studio"})
    assert (space.data_dir, space.host) == (Path.cwd() / "outputs", "0.0.0.0")


def test_a_secret_shows_stars_everywhere_but_in_reveal() -> None:
    secret = Secret("hf_abc")
    settings = Settings(data_dir=Path("x"), token=secret, auth=("ann", secret))
    shown = [str(secret), repr(secret), f"{secret:>20}", str(settings), str(dataclasses.asdict(settings))]
    shown += [json.dumps(dataclasses.asdict(settings), default=str), str(copy.deepcopy(secret)), str(copy.copy(secret))]
    assert all("hf_abc" not in text and "********" in text for text in shown)
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(secret)
    assert secret.reveal() == "hf_abc"
    assert secret == Secret("hf_abc") != Secret("other")


def test_the_example_names_every_variable_and_sets_none() -> None:
    from dotenv import dotenv_values

    values = dotenv_values(EXAMPLE)
    own = {f"DREAMBOOTH_{name}" for name in ("HOME", "AUTH", "DRIVE", "HOST", "NAMES", "PORT")}
    assert set(values) == own | {"HF_TOKEN", "HF_ENDPOINT", "GRADIO_ROOT_PATH", "OMP_NUM_THREADS"}
    assert not any(values.values())
    assert load_settings(env={}, dotenv=EXAMPLE) == load_settings(env={})


def test_the_names_of_a_proxy_and_of_a_space_are_read() -> None:
    settings = load_settings(env={"DREAMBOOTH_NAMES": "Studio.example, b.example", "SPACE_HOST": "ann-studio.hf.space"})
    assert settings.names == ("studio.example", "b.example", "ann-studio.hf.space")
    assert load_settings(env={"SPACE_ID": "ann/studio"}).space_id == "ann/studio"
    with pytest.raises(ConfigError, match="DREAMBOOTH_NAMES"):
        load_settings(env={"DREAMBOOTH_NAMES": "https://studio.example/"})
