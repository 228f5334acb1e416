from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from inference.llamacpp.tuning.choice import CHOICES
from inference.llamacpp.tuning.places import TuningPlaces
from inference.llamacpp.tuning.profile import Profile, Weights
from models import resolve
from models.places import default_places
from server.cli import main
from server.cli.errors import CommandError
from server.cli.machine import Gpu, Machine, Processor
from server.cli.tuned import key_of, machine_words, weights_for
from server.cli.tuneplot import COLOURS, plot
from server.cli.tunereport import choices, table
from server.environment import SettingsError, load_settings
from server.settings import Settings
from tests.inference.llamacpp.tuning.figures import FAST, SERVER, candidate, profile
from tests.models.gguf_files import gguf_bytes

MACHINE = Machine(
    processor=Processor(name="Some CPU", cores=2, threads=4, features=("avx2",)),
    memory_bytes=1 << 34,
    cpu_limit=None,
    gpus=(),
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file that llama.cpp never sees, in a home of its own."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes())
    return path


def tuned(model: Path, figures: Profile = FAST) -> Profile:
    """Leave what `headrace tune` would have left for `model` after finding these figures."""
    content = b"weights in another format"
    places = TuningPlaces.beside(default_places())
    key = key_of(places.fingerprint(model), gpu_layers=-1)
    weights = []
    places.weights.mkdir(parents=True, exist_ok=True)
    for format in sorted(figures.chosen_formats()):
        path = places.weights_file(key, format)
        path.write_bytes(content)
        sha256 = places.fingerprint(path)
        weights.append(Weights(format=format, name=path.name, size=len(content), sha256=sha256))
    written = msgspec.structs.replace(figures, key=key, weights=weights)
    places.save(written)
    return written


def settings(model: Path, name: str, **others: int) -> Settings:
    flags = {"model": str(model), "profile": name} | others
    return load_settings(flags=flags, environ={})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--formats", "Q9_9"), "known are BF16"),
        (("--formats", ","), "no format"),
        (("--out", "/no/such/directory/x.svg"), "no such directory"),
        (("--rounds", "0"), "1 to 1024"),
        (("--threads", "2,x"), "invalid"),
        (("--weights-only", "--rounds", "2"), "--rounds: --weights-only measures nothing"),
        (("--weights-only", "--quick"), "--quick: --weights-only measures nothing"),
    ],
)
def test_wrong_options_are_one_line(
    options: tuple[str, ...], word: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(model), *options]) == 2
    err = capsys.readouterr().err
    assert word in err
    assert "Traceback" not in err


def test_an_unknown_model_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_a_failed_tuning_leaves_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """llama.cpp is asked for real here, and refuses: the file holds no model."""
    assert main(["tune", str(model), "--quick", "--formats", "Q4_0", "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "could not load" in captured.err
    assert captured.out == ""
    places = TuningPlaces.beside(default_places())
    assert not places.profiles.exists()
    assert [path.name for path in places.weights.iterdir()] == ["locks"]


def test_weights_of_no_profile_cannot_be_made(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(model), "--weights-only"]) == 1
    assert "tiny has no tuned profile for this machine yet" in capsys.readouterr().err


def test_weights_that_are_there_are_not_made_again(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp could not make them: the file holds no model."""
    tuned(model, SERVER)
    assert main(["tune", str(model), "--weights-only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    serve = f"use it   headrace serve --model {model} --profile near-lossless"
    assert lines[-2:] == [serve, f"{serve}/throughput"]


def test_the_table_has_a_row_for_each_candidate() -> None:
    lines = table(SERVER).splitlines()
    assert len(lines) == 1 + len(SERVER.candidates)
    assert lines[0].split()[-3:] == ["even", "latency", "throughput"]
    assert lines[1].startswith("Q4_1 (original)")
    assert "400 (4.00)" in lines[2]
    assert "0.0030" in lines[2]
    # One stream is too slow for two of the preferences.
    assert lines[2].split()[-3:] == ["-", "-", "2.83"]
    assert lines[3].split()[-3:] == ["1.53", "1.42", "1.73"]


def test_the_choices_are_a_table_of_classes_and_preferences() -> None:
    lines = [" ".join(line.split()) for line in choices(SERVER).splitlines()]
    assert lines[0] == "class mean KL even latency throughput"
    assert lines[1] == "near-lossless <= 0.01 Q8_0 (1.53) Q8_0 (1.42) BF16 (2.83)"
    assert len(lines) == 4
    assert choices(profile()).count("the original") == len(CHOICES)


def test_the_plot_is_well_formed_whatever_the_name() -> None:
    strange = candidate("Q5_0", divergence=7.0, ratio=(0.1, 0.1, 0.1))
    rows = [*FAST.candidates, strange]
    named = msgspec.structs.replace(FAST, model='<script>&"', candidates=rows)
    root = ElementTree.fromstring(plot(named))
    circles = [element for element in root if element.tag.endswith("circle")]
    assert len(circles) == 3 * (1 + len(rows))  # the legend has one of each preference
    texts = {element.text for element in root if element.tag.endswith("text")}
    assert {"Q8_0", "Q4_0", "Q5_0", "Q4_1 (original)"} <= texts
    assert {"even", "latency", "throughput"} <= texts
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 720
        assert 0 <= float(circle.attrib["cy"]) <= 440


def test_what_a_preference_chooses_is_filled_in_its_colour() -> None:
    filled = [
        circle.attrib["fill"]
        for circle in ElementTree.fromstring(plot(SERVER))
        if circle.tag.endswith("circle") and circle.attrib["fill"] != "#fff"
    ][3:]
    # BF16 for many users; Q8_0 for one, and for all alike.
    assert filled == [COLOURS[name] for name in ("throughput", "latency", "even")]


def test_another_machine_has_other_words() -> None:
    gpu = Gpu(vendor="NVIDIA", name="H200")
    words = {
        machine_words(MACHINE, gpu_layers=-1, usable=4),
        machine_words(MACHINE, gpu_layers=-1, usable=2),
        machine_words(replace(MACHINE, cpu_limit=1.5), gpu_layers=-1, usable=4),
        machine_words(replace(MACHINE, gpus=(gpu,)), gpu_layers=-1, usable=4),
        machine_words(replace(MACHINE, gpus=(gpu,)), gpu_layers=0, usable=4),
    }
    assert len(words) == 5
    # Without a GPU, layers on it make no difference.
    assert machine_words(MACHINE, gpu_layers=0, usable=4) in words


def test_without_a_profile_serve_names_the_command(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", str(model), "--profile", "fast", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert "--profile fast: tiny has no tuned profile for this machine yet" in err
    assert f"`headrace tune {model}`" in err


def test_the_scripted_engine_has_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--engine", "scripted", "--profile", "fast", "--port", "0"]) == 2
    assert "--profile" in capsys.readouterr().err


def test_a_class_is_served_with_its_settings(model: Path) -> None:
    found = resolve(str(model))
    written = tuned(model)
    served = weights_for(settings(model, "near-lossless"), found)
    assert served.path.name == written.weights[1].name
    assert (served.threads, served.batch_tokens) == (2, 512)
    assert served.words == ("near-lossless, Q8_0 made from Q4_1, mean KL 0.0050, 1.7 times as fast")
    assert weights_for(settings(model, "fast"), found).path.name == written.weights[0].name


def test_many_users_get_other_weights_where_that_is_asked_for(model: Path) -> None:
    found = resolve(str(model))
    tuned(model, SERVER)
    for name in ("near-lossless", "near-lossless/latency"):
        assert "-Q8_0-" in weights_for(settings(model, name), found).path.name
    served = weights_for(settings(model, "near-lossless/throughput"), found)
    assert "-BF16-" in served.path.name
    assert served.words == (
        "near-lossless/throughput, BF16 made from Q4_1, mean KL 0.0030, "
        "2.8 times as fast for many users"
    )


def test_each_choice_can_be_set_and_no_other(model: Path) -> None:
    for name in ("original", *CHOICES):
        assert settings(model, name).profile == name
    for name in ("near-lossless/even", "throughput", "fast/"):
        with pytest.raises(SettingsError, match="near-lossless/throughput or balanced"):
            settings(model, name)


def test_an_old_profile_says_how_to_get_the_weights_it_lacks(model: Path) -> None:
    """Before there were preferences only the weights of one choice a class were kept."""
    found = resolve(str(model))
    places = TuningPlaces.beside(default_places())
    path = places.profile(tuned(model, SERVER).key)
    new = path.read_text("utf-8")
    bf16 = new[
        new.index('[[weights]]\nformat = "BF16"') : new.index('[[weights]]\nformat = "Q8_0"')
    ]
    chosen = "[choices]\nnear-lossless = 2\nbalanced = 2\nfast = 2\n\n[key]"
    old = new.replace(bf16, "").replace("[key]", chosen).replace("version = 2", "version = 1")
    path.write_text(old, "utf-8")
    assert "-Q8_0-" in weights_for(settings(model, "near-lossless"), found).path.name
    remedy = rf"without weights in BF16; `headrace tune {model} --weights-only` makes"
    with pytest.raises(CommandError, match=remedy):
        weights_for(settings(model, "near-lossless/throughput"), found)
    words = weights_for(settings(model, "original"), found).words
    assert words == "original; faster here: --profile near-lossless (1.5 times)"


def test_what_somebody_has_set_wins(model: Path) -> None:
    tuned(model)
    served = weights_for(settings(model, "fast", threads=1, batch_tokens=64), resolve(str(model)))
    assert (served.threads, served.batch_tokens) == (1, 64)


def test_the_original_is_served_unless_asked_and_the_offer_is_made(model: Path) -> None:
    found = resolve(str(model))
    before = weights_for(settings(model, "original"), found)
    assert (before.path, before.words) == (model, None)
    tuned(model)
    after = weights_for(settings(model, "original"), found)
    assert after.path == model
    assert (after.threads, after.batch_tokens) == (0, 512)
    assert after.words == "original; faster here: --profile near-lossless (1.7 times)"
    tuned(model, SERVER)
    assert weights_for(settings(model, "original"), found).words == (
        "original; faster here: --profile near-lossless (1.5 times), "
        "--profile near-lossless/throughput (2.8 times for many users)"
    )


def test_changed_weights_are_not_served(model: Path) -> None:
    written = tuned(model)
    path = TuningPlaces.beside(default_places()).weights / written.weights[1].name
    path.write_bytes(b"X" * written.weights[1].size)
    with pytest.raises(CommandError, match=r"SHA-256 differs; `headrace tune .* --weights-only`"):
        weights_for(settings(model, "near-lossless"), resolve(str(model)))


def test_a_changed_model_has_no_profile(model: Path) -> None:
    tuned(model)
    model.write_bytes(gguf_bytes(tensor_data=256))
    found = resolve(str(model))
    assert weights_for(settings(model, "original"), found).words is None
    with pytest.raises(CommandError, match="no tuned profile"):
        weights_for(settings(model, "fast"), found)


def test_a_damaged_profile_stops_only_those_who_ask_for_it(model: Path) -> None:
    places = TuningPlaces.beside(default_places())
    path = places.profile(tuned(model).key)
    path.write_text("version = 1")
    found = resolve(str(model))
    assert weights_for(settings(model, "original"), found).words is None
    with pytest.raises(CommandError, match="cannot be used"):
        weights_for(settings(model, "fast"), found)
