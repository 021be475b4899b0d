"""From options to a stack."""

import os
from pathlib import Path

from launch import cpu, hardware, programs
from launch.options import Options
from launch.plan import Stack
from launch.ports import Ports
from launch.programs import Setting
from launch.workers import workers

_GPU_MODEL = "Qwen/Qwen3-0.6B"
_SMALL_MODEL = "small"


def build(options: Options, directory: Path) -> Stack:
    """The stack that `options` describe; what it keeps while it runs goes into `directory`.

    Raises UsageError, StackError or ConnectorError where it could not run here; what its workers
    lack is the stack's `obstacle`.
    """
    dynamo = options.topology != "vllm"
    python = hardware.worker_python(options.worker_python, dynamo)
    have = hardware.installed(python)
    setting = _setting(options, directory, python, hardware.on_cpu(options, have))
    ports = Ports()
    cache = programs.sidecar(options, ports)
    front = (programs.frontend(setting, ports),) if dynamo else ()
    serving, conflicts = workers(setting, cache, ports, have)
    return Stack(
        name=options.name,
        programs=(cache, *front, *serving),
        url=(front or serving)[0].check.base,
        model=setting.served_name,
        start_timeout=options.start_timeout,
        own_model=setting.own_model,
        warnings=conflicts,
        obstacle=hardware.obstacle(python, dynamo, have, setting.on_cpu)
        or (cpu.no_small_model() if setting.own_model else ""),
    )


def _setting(options: Options, directory: Path, python: str, on_cpu: bool) -> Setting:
    own_model = on_cpu and not options.model
    model = options.model or (str(directory / "model") if own_model else _GPU_MODEL)
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    usual_name = _SMALL_MODEL if own_model else options.model or _GPU_MODEL
    return Setting(
        options=options,
        model=model,
        served_name=options.served_model_name or usual_name,
        own_model=own_model,
        on_cpu=on_cpu,
        gpus=() if on_cpu else hardware.gpus(options.gpus, options.worker_count, visible),
        python=python,
        discovery=programs.discovery(options, str(directory / "discovery")),
    )
