from importlib.resources import files


def test_the_text_is_plain_prose_of_the_right_length() -> None:
    text = files("inference.llamacpp.tuning").joinpath("prose.txt").read_text(encoding="utf-8")
    assert text.isascii()
    assert 4_000 < len(text) < 8_000
    assert all(len(paragraph.split()) > 40 for paragraph in text.strip().split("\n\n"))
