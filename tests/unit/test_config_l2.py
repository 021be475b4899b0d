"""What an operator sees of the L2 adapters' settings: where they may stand, and what is refused."""

import json
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.config import Config, ConfigError, load
from sidecar.config.show import by_group

SIZE = ["--l1-size-gb", "1"]
FS = '{"type": "fs", "base_path": "/data/l2"}'
REDIS = '{"type": "resp", "host": "valkey"}'
S3 = '{"type": "s3", "bucket": "abc", "endpoint_url": "http://minio:9000"}'

# The key that is hidden stands first.
SECRETS = {
    "aws_secret_access_key": '{"type": "s3", "s3_endpoint": "s3://abc", '
    '"aws_access_key_id": "hunter2", "aws_secret_access_key": "hunter2"}',
    "password": '{"type": "resp", "host": "valkey", "password": "hunter2"}',
    "secret_key": '{"type": "nixl_store", "backend": "OBJ", "backend_params": '
    '{"bucket": "abc", "access_key": "hunter2", "secret_key": "hunter2"}}',
    "connection_string": '{"type": "nixl_store", "backend": "AZURE_BLOB", "backend_params": '
    '{"connection_string": "AccountKey=hunter2"}}',
    "inner": '{"type": "tests.support.faulty_adapter:FaultInjectSettings", "inner": '
    '{"type": "resp", "host": "valkey", "password": "hunter2"}}',
}


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return path


def types(config: Config) -> list[str]:
    return [spec.settings.type for spec in config.l2_adapter]


def from_file(tmp_path: Path, text: str, *arguments: str) -> Config:
    return load([*SIZE, "--config", str(file_with(tmp_path, text)), *arguments], {}).config


def problem_in_file(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text)
    return str(caught.value).removeprefix(str(tmp_path / "sidecar.yaml"))


def printed(capsys: pytest.CaptureFixture[str], *adapters: str) -> str:
    flags = [word for adapter in adapters for word in ("--l2-adapter", adapter)]
    assert main(["serve", *SIZE, *flags, "--print-config"]) == 0
    return capsys.readouterr().out


def test_flags_may_be_repeated_and_keep_their_order() -> None:
    for order in ([FS, S3, REDIS], [REDIS, S3, FS]):
        flags = [f"--l2-adapter={adapter}" for adapter in order]
        assert types(load([*SIZE, *flags], {}).config) == [json.loads(a)["type"] for a in order]


@pytest.mark.parametrize(
    ("text", "expected"), [(FS, ["fs"]), (f"[{FS}, {REDIS}]", ["fs", "resp"]), ("[]", [])]
)
def test_one_text_may_hold_one_adapter_or_a_list(
    text: str, expected: list[str], tmp_path: Path
) -> None:
    assert types(load(SIZE, {"KV_SIDECAR_L2_ADAPTER": text}).config) == expected
    assert types(load([*SIZE, "--l2-adapter", text], {}).config) == expected
    assert types(from_file(tmp_path, f"l2-adapter: {json.dumps(text)}")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("l2-adapter:\n  - type: fs\n    base_path: /data/l2\n  - type: resp\n", ["fs", "resp"]),
        ("l2-adapter:\n  type: fs\n  base_path: /data/l2\n", ["fs"]),
        ("l2_adapter: [{type: resp}]", ["resp"]),
        ("l2-adapter: []", []),
        ("l2-adapter:", []),
    ],
)
def test_a_file_may_hold_them_as_yaml(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert types(from_file(tmp_path, text)) == expected


def test_values_of_yaml_have_their_types(tmp_path: Path) -> None:
    text = "l2-adapter: {type: fs, base_path: /a, use_odirect: no, max_capacity_gb: 1.5}"
    (spec,) = from_file(tmp_path, text).l2_adapter
    assert spec.settings.capacity_bytes == 3 << 29
    assert not spec.settings.use_odirect  # type: ignore[attr-defined]


def test_a_flag_replaces_all_adapters_of_the_file(tmp_path: Path) -> None:
    text = "l2-adapter: [{type: fs, base_path: /a}, {type: resp}]"
    assert types(from_file(tmp_path, text, "--l2-adapter", S3)) == ["s3"]
    assert types(from_file(tmp_path, text, "--l2-adapter", "[]")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fs", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth exceeded"),
        ('"fs"', '"fs" is not an object such as {"type": "fs", ...}'),
        ("null", 'null is not an object such as {"type": "fs", ...}'),
        ('[["secret"]]', 'a list is not an object such as {"type": "fs", ...}'),
        ("{}", "type None is unknown; there are: fs, "),
        ('{"type": "fz"}', "type 'fz' is unknown; there are: fs, fs_native, "),
        ('{"type": ["fs"]}', "type ['fs'] is unknown; there are: fs, "),
        ('{"type": "raw_block"}', "type 'raw_block' is not implemented; there are: fs, "),
        ('{"type": "fs"}', "fs: Object missing required field `base_path`"),
        ('{"type": "fs", "base_path": 5}', "fs: Expected `str`, got `int` - at `$.base_path`"),
        ('{"type": "fs", "base_path": "l2"}', "fs: base_path 'l2' is not absolute"),
        (FS[:-1] + ', "size": 1}', "fs: Object contains unknown field `size`"),
        (FS[:-1] + ', "a\\nb": 1}', "fs: Object contains unknown field `a b`"),
        (FS[:-1] + ', "num_workers": 0}', "fs: Expected `int` >= 1 - at `$.num_workers`"),
        (FS[:-1] + ', "max_capacity_gb": NaN}', "fs: Expected `float` >= 0.0"),
        (FS[:-1] + ', "name": "a b"}', "fs: Expected `str` matching regex "),
        (FS[:-1] + ', "serde": {"type": "fp8"}}', "fs: Object contains unknown field `serde`"),
        (FS[:-1] + ', "eviction": {"eviction_policy": "ARC"}}', "fs: eviction_policy 'ARC' is not"),
    ],
)
def test_wrong_adapters_are_one_line_and_exit_code_2(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *SIZE, "--l2-adapter", text]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"kv-sidecar: --l2-adapter: {message}")
    assert captured.err.count("\n") == 1


def test_a_wrong_one_among_several_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *SIZE, "--l2-adapter", FS, "--l2-adapter", '{"type": "s3"}']) == 2
    assert capsys.readouterr().err.startswith("kv-sidecar: --l2-adapter: s3: give either ")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            "{type: fs, base_path: 2024-01-01}",
            "Object of type date is not JSON serializable; quote",
        ),
        (
            "{type: fs, base_path: 2024-99-01}",
            "month must be in 1..12; quote what is meant as text",
        ),
        ("{type: fs, 2024-01-01: 1}", "keys must be str, int, float, bool or None, not datetime"),
        ("{type: !!binary aGk=}", "Object of type bytes is not JSON serializable; quote"),
        ("{type: !mine x}", "could not determine a constructor for the tag '!mine'"),
        ("!!python/object:os.system {type: fs}", "could not determine a constructor for the tag"),
        ("{[a]: 1}", "found unhashable key"),
        ("&a [*a]", "found unconstructable recursive node"),
        ("[fs]", '"fs" is not an object such as {"type": "fs", ...}'),
        ("{type: fs, base_path: /a, name: 7}", "fs: Expected `str`, got `int` - at `$.name`"),
    ],
)
def test_yaml_that_is_no_adapter_is_one_line_with_the_place(
    tmp_path: Path, value: str, problem: str
) -> None:
    line = problem_in_file(tmp_path, f"port: 5555\nl2-adapter: {value}")
    assert line.startswith(f":2: l2-adapter: {problem}")
    assert "\n" not in line


def test_keys_of_lmcache_that_change_nothing_are_warned_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = FS[:-1] + ', "read_ahead_size": 4096, "persist_enabled": true}'
    assert main(["serve", *SIZE, "--l2-adapter", text, "--print-config"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "kv-sidecar: warning: --l2-adapter fs: read_ahead_size changes nothing: "
        "a record is read whole",
        "kv-sidecar: warning: --l2-adapter fs: persist_enabled changes nothing: "
        "what is stored is kept",
    ]
    assert "read_ahead_size" not in captured.out


def test_they_are_a_group_of_their_own() -> None:
    group = by_group(load([*SIZE, "--l2-adapter", FS], {}).config)["l2"]
    assert group == {
        "l2_adapter": [{"type": "fs", "base_path": "/data/l2"}],
        "l2_store_policy": "default",
        "l2_prefetch_policy": "default",
        "l2_prefetch_max_in_flight": 8,
        "l2_prefetch_timeout_seconds": 10,
        "l2_store_queue_ratio": 0.5,
    }


def test_the_help_shows_how_one_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert '--l2-adapter VALUE an L2 backend as JSON: {"type": "fs", "base_path": ' in text


@pytest.mark.parametrize("key", SECRETS)
def test_secrets_are_never_shown(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, SECRETS[key])
    assert "hunter2" not in out
    assert f'"{key}": ' in out
    assert '"***"' in out
    config = load([*SIZE, "--l2-adapter", SECRETS[key]], {}).config
    assert "hunter2" not in json.dumps(by_group(config))


def test_a_login_in_a_url_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, S3.replace("minio", "me:hunter2@minio"))
    assert '"endpoint_url": "http://minio:9000"' in out
    assert "hunter2" not in out


def test_what_is_printed_can_be_read_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    adapters = [
        '{"type": "fs", "base_path": "/l2 # \\"\\u00e9\\ud83d\\ude00: {", "use_odirect": false}',
        S3,
        '{"type": "nixl_store", "backend": "POSIX", "max_capacity_gb": 0.5, '
        '"eviction": {"trigger_watermark": 0.9}, '
        '"backend_params": {"file_path": "/data/nixl", "use_direct_io": "true"}}',
        '{"type": "tests.support.faulty_adapter:FaultInjectSettings", "hang": ["load"], '
        '"errors": {"store": "EIO"}, "inner": {"type": "resp", "host": "valkey"}}',
    ]
    out = printed(capsys, *adapters)
    again = load(["--config", str(file_with(tmp_path, out))], {}).config
    flags = [f"--l2-adapter={adapter}" for adapter in adapters]
    assert again.l2_adapter == load([*SIZE, *flags], {}).config.l2_adapter
