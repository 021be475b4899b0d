"""Lets Dynamo start where torchvision has no build: it imports this of transformers for images."""

import sys
import types


def smart_resize(*_: object, **__: object) -> None:
    raise NotImplementedError("images need torchvision")


_stand_in = types.ModuleType("transformers.models.qwen2_vl.image_processing_qwen2_vl")
_stand_in.smart_resize = smart_resize  # type: ignore[attr-defined]
sys.modules[_stand_in.__name__] = _stand_in
