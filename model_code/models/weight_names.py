"""Names of weights as timm has them, so that files of torchvision, timm and Darkroom fit each other's networks.

ResNets are called alike by timm and torchvision. Of EfficientNet, timm's names tell what a layer does. Swin's stages
are those of timm 0.9 and newer, which counts the patch merging to the stage after it.
"""

import re
from collections.abc import Iterable

_Rules = tuple[tuple[str, str], ...]
_MLP: _Rules = ((r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."), (r"\.mlp\.([1-9]|linear_2)\.", ".mlp.fc2."))
# A name that only this family has -> replacements in its names; {half}, {before} and the like are of the matched stage.
_FAMILIES: dict[str, _Rules] = {
    "stem.0.weight": (
        (r"^stem\.0\.", "conv1."),
        (r"^stem\.1\.", "bn1."),
        (r"^stages\.(\d+)\.", "layer{next}.{odd}."),
        (r"\.shortcut\.", ".downsample."),
    ),
    "patch_embedding.weight": (
        (r"^patch_embedding\.", "patch_embed.proj."),
        (r"^patch_norm\.", "patch_embed.norm."),
        (r"^layers\.(\d+)\.blocks\.", "layers.{half}.blocks."),
        (r"^layers\.(\d+)\.(?=norm|reduction)", "layers.{next}.downsample."),
        (r"\.attention\.bias_table_PA$", ".attn.relative_position_bias_table"),
        (r"\.attention\.", ".attn."),
        *_MLP,
    ),
    "features.0.0.weight": (
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        (r"^features\.(\d+)\.(?=norm|reduction)", "layers.{half}.downsample."),
        (r"^features\.(\d+)\.", "layers.{half}.blocks."),
        *_MLP,
    ),
    "features.1.0.block.0.0.weight": (
        (r"^features\.0\.0\.", "conv_stem."),
        (r"^features\.0\.1\.", "bn1."),
        (r"^features\.8\.0\.", "conv_head."),
        (r"^features\.8\.1\.", "bn2."),
        (r"\.block\.\d\.fc1\.", ".se.conv_reduce."),
        (r"\.block\.\d\.fc2\.", ".se.conv_expand."),
        # The first stage has no expansion, so that its layers count from one less.
        (r"^features\.1\.0\.block\.0\.0\.", "blocks.0.0.conv_dw."),
        (r"^features\.1\.0\.block\.0\.1\.", "blocks.0.0.bn1."),
        (r"^features\.1\.0\.block\.2\.0\.", "blocks.0.0.conv_pw."),
        (r"^features\.1\.0\.block\.2\.1\.", "blocks.0.0.bn2."),
        (r"\.block\.0\.0\.", ".conv_pw."),
        (r"\.block\.0\.1\.", ".bn1."),
        (r"\.block\.1\.0\.", ".conv_dw."),
        (r"\.block\.1\.1\.", ".bn2."),
        (r"\.block\.3\.0\.", ".conv_pwl."),
        (r"\.block\.3\.1\.", ".bn3."),
        (r"^features\.(\d+)\.", "blocks.{before}."),
    ),
    "encoder.pos_embedding": (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_", "blocks."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.ln_", ".norm"),
        (r"^encoder\.ln\.", "norm."),
        *_MLP,
    ),
    # timm before 0.9, and Swin's authors.
    "layers.0.downsample.norm.weight": ((r"^layers\.(\d+)\.downsample\.", "layers.{after}.downsample."),),
}


def translate(names: Iterable[str]) -> dict[str, str]:
    """Return timm's name -> given name of the weights of a network; other networks keep their names."""
    given = list(names)
    marks = set(given)
    rules = next((rules for mark, rules in _FAMILIES.items() if mark in marks and _is_family(mark, marks)), ())
    return {_translate(name, rules): name for name in given}


def _is_family(mark: str, names: set[str]) -> bool:
    # AlexNet and others have features.0 too, but none of Swin's.
    return mark != "features.0.0.weight" or "features.0.2.weight" in names


def _translate(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        found = re.search(pattern, name)
        if found is not None:
            stage = int(found[1]) if found.groups() and found[1].isdecimal() else 0
            half = stage // 2
            new = replacement.format(half=half, next=half + 1, odd=stage % 2, before=stage - 1, after=stage + 1)
            name = name[: found.start()] + new + name[found.end() :]
    return name
