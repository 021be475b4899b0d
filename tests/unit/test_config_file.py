"""What an operator sees of the YAML file: its values, and one line for what is wrong in it."""

from pathlib import Path

import pytest

from sidecar.config import Config, ConfigError, load
from sidecar.config.options import OPTIONS

EXAMPLE = Path(__file__).parents[2] / "configs" / "sidecar.yaml"
SIZE = ["--l1-size-gb", "1"]


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return path


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = file_with(tmp_path, "l1-size-gb: 2")
    assert load([], {"KV_SIDECAR_CONFIG": str(path)}).config.l1_size_gb == 2


def test_the_example_file_has_every_key_with_its_default() -> None:
    loaded = load(["--config", str(EXAMPLE)], {})
    config = loaded.config
    plain = Config(
        l1_size_gb=config.l1_size_gb,
        instance_id=config.instance_id,
    )
    assert config == plain
    keys = [line.split(":")[0] for line in EXAMPLE.read_text().splitlines() if line[:1].islower()]
    assert sorted(keys) == sorted(name.replace("_", "-") for name in OPTIONS)


def test_the_adapters_in_the_comments_of_the_example_file_can_be_used(tmp_path: Path) -> None:
    shown = [line[2:] for line in EXAMPLE.read_text().splitlines() if line.startswith("#   ")]
    text = "\n".join(["l2-adapter:", *shown])
    loaded = load([*SIZE, "--config", str(file_with(tmp_path, text))], {})
    types = [spec.settings.type for spec in loaded.config.l2_adapter]
    assert types == ["fs", "nixl_store", "s3", "mooncake_store", "resp"]
    assert loaded.warnings == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", ":1: unknown key prot; did you mean port?"),
        ("a: 1", ":1: unknown key a"),
        ("port: 1\nport: 2", ":2: port was given before"),
        ("http-port: 1\nhttp_port: 2", ":2: http_port was given before"),
        ("port: [1]", ":1: port: expected one value, not a list or mapping"),
        (
            "l2-store-policy: {a: 1}",
            ":1: l2-store-policy: expected one value, not a list or mapping",
        ),
        ("- port", ": expected lines of the form 'key: value'"),
        ("port: 'x", ":1: not valid YAML: found unexpected end of stream"),
        ("port: \x00", ": not a text file in UTF-8"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = file_with(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load([*SIZE, "--config", str(path)], {})
    assert str(caught.value) == f"{path}{message}"


def test_a_key_without_value_and_an_empty_file_leave_defaults(tmp_path: Path) -> None:
    for text in ("port:\nmax-workers: null\n", "", "# nothing\n"):
        loaded = load([*SIZE, "--config", str(file_with(tmp_path, text))], {})
        assert loaded.config.port == 5555
        assert loaded.sources["port"] == "default"
