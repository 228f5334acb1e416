import dataclasses
from pathlib import Path

import pytest

from server.environment import SettingsError, data_dir_of, load_settings
from server.settings import GROUPS, TYPES, Settings, flag_of, option_of, variable_of


def test_defaults_are_within_their_own_ranges() -> None:
    defaults = Settings()
    flags = {name: getattr(defaults, name) for name in TYPES}
    flags = {
        name: str(value) if isinstance(value, Path) else value for name, value in flags.items()
    }
    assert load_settings(flags=flags, environ={}) == defaults


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("lanes = 2\nport = 2\nhost = '127.0.0.2'\n")
    settings = load_settings(
        flags={"lanes": "4", "port": None},
        environ={"HEADRACE_LANES": "3", "HEADRACE_PORT": "3"},
        file=file,
    )
    assert (settings.lanes, settings.port, settings.host) == (4, 3, "127.0.0.2")
    assert settings.max_n == Settings().max_n


def test_the_file_may_be_named_by_a_variable_and_a_flag_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("lanes = 1")
    two.write_text("lanes = 2")
    environ = {"HEADRACE_CONFIG": str(one)}
    assert load_settings(flags={}, environ=environ).lanes == 1
    assert load_settings(flags={}, environ=environ, file=two).lanes == 2


def test_empty_and_foreign_variables_count_as_not_given() -> None:
    environ = {"HEADRACE_PORT": "", "HEADRACE_SERVICE_HOST": "10.0.0.1", "PORT": "1"}
    assert load_settings(flags={}, environ=environ) == Settings()


def test_every_source_is_converted_to_the_type_of_the_field(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("target_itl_ms = 50\nvllm_metrics = true\n")
    settings = load_settings(
        flags={"offline": True, "drain_seconds": "1.5"},
        environ={"HEADRACE_LOG_PROMPTS": "true", "HEADRACE_GPU_LAYERS": "-1"},
        file=file,
    )
    assert settings.target_itl_ms == 50.0
    assert isinstance(settings.target_itl_ms, float)
    assert settings.vllm_metrics is True
    assert settings.offline is True
    assert settings.log_prompts is True
    assert settings.drain_seconds == 1.5
    assert settings.gpu_layers == -1


def test_a_switch_can_be_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("offline = true")
    assert load_settings(flags={"offline": False}, environ={}, file=file).offline is False


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("api_key_file = 'keys'\nscript = '/srv/script.toml'\n")
    settings = load_settings(flags={}, environ={}, file=file)
    assert settings.api_key_file == tmp_path / "keys"
    assert settings.script == Path("/srv/script.toml")
    assert load_settings(flags={"api_key_file": "keys"}, environ={}).api_key_file == Path("keys")


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load_settings(flags={}, environ={"HEADRACE_API_KEY_FILE": "~/keys"})
    assert settings.api_key_file == Path("/home/ada/keys")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "abc"),
        ("port", "80.5"),
        ("port", "8080 "),
        ("port", "0x50"),
        ("port", "tcp://10.0.0.1:8080"),
        ("host", ""),
        ("model", ""),
        ("engine", "vllm"),
        ("lanes", "0"),
        ("lanes", "257"),
        ("lanes", "9" * 400),
        ("context", "-1"),
        ("threads", "1025"),
        ("gpu_layers", "-2"),
        ("batch_tokens", "15"),
        ("engine", "Scripted"),
        ("target_itl_ms", "0"),
        ("target_itl_ms", "nan"),
        ("target_itl_ms", "inf"),
        ("drain_seconds", "-0.1"),
        ("drain_seconds", "nan"),
        ("body_seconds", "0"),
        ("stream_store", "mysql://db"),
        ("stream_store", "redis:"),
        ("coalesce_ms", "-1"),
        ("retention_seconds", "0"),
        ("max_live_responses", "0"),
        ("max_body_bytes", "2MiB"),
        ("max_n", "129"),
        ("max_requests", "0"),
        ("offline", "maybe"),
        ("log_level", "trace"),
        ("script", ""),
    ],
)
def test_what_is_out_of_range_names_the_field_and_the_flag(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^flag {flag_of(name)}: expected .*, not") as caught:
        load_settings(flags={name: value}, environ={})
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


def test_errors_name_the_variable() -> None:
    with pytest.raises(SettingsError, match="variable HEADRACE_PORT: expected int"):
        load_settings(flags={}, environ={"HEADRACE_PORT": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 'x'", "c.toml key port: expected int, not 'x'"),
        ("lanes = true", "c.toml key lanes: expected int, not True"),
        ("lanes = [1]", "c.toml key lanes: expected int"),
        ("model = 5", "c.toml key model: expected str"),
        ("engine = 'both'", "c.toml key engine: expected llamacpp or scripted"),
        ("offline = 2", "c.toml key offline: expected true or false"),
        ("api_key_file = 1", "c.toml key api_key_file: expected a path"),
        ("prot = 80", "c.toml: unknown key prot, did you mean port"),
        ("api-key-file = 'k'", "did you mean api_key_file"),
        ("[server]\nport = 80", "c.toml: unknown key server"),
        ("port = ", "c.toml: not valid TOML"),
        ("port = 1\nport = 2", "c.toml: not valid TOML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(flags={}, environ={}, file=file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml: cannot be read: No such file"):
        load_settings(flags={}, environ={}, file=tmp_path / "missing.toml")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(flags={}, environ={}, file=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"model = '\xe4'")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(flags={}, environ={}, file=tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "store",
    ["off", "sqlite", "redis://h:1/0", "unix:///run/redis", "postgresql+psycopg://h/d"],
)
def test_stores_are_words_or_urls(store: str) -> None:
    assert load_settings(flags={"stream_store": store}, environ={}).stream_store == store


def test_state_is_kept_where_the_setting_or_the_xdg_specification_says() -> None:
    default = Settings()
    assert data_dir_of(default, {"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/headrace")
    for environ in ({"HOME": "/h"}, {"XDG_DATA_HOME": "relative", "HOME": "/h"}):
        assert data_dir_of(default, environ) == Path("/h/.local/share/headrace")
    chosen = load_settings(flags={}, environ={"HEADRACE_DATA_DIR": "/srv/headrace"})
    assert data_dir_of(chosen, {"XDG_DATA_HOME": "/x"}) == Path("/srv/headrace")


def test_each_setting_has_a_group_and_one_line_of_help() -> None:
    for field in dataclasses.fields(Settings):
        option = option_of(field.name)
        assert option.group in GROUPS
        assert option.help
        assert bool(option.metavar) is not (TYPES[field.name].__origin__ is bool)
        assert variable_of(field.name) == "HEADRACE_" + field.name.upper()
