"""A PEFT LoRA adapter that can be merged: W + scaling * B A, scaling = alpha / r, or alpha / sqrt(r) with use_rslora.

adapter_config.json, and in adapter_model.safetensors base_model.model.MODULE.lora_A.weight [r, in] and .lora_B.weight [out, r].
Whatever else PEFT can do, or will, is refused: a merge without it would be another model.
"""
import json
import math
import os
import re
from typing import Dict, NamedTuple

import numpy as np

from data.errors import BAD_FILE, USAGE, UserError
from data.model_dir import read_json

from .safetensors_file import Tensor, is_finite, read_header, read_rows, to_float32

ONLY_PLAIN = "only a plain LoRA adapter can be merged; merge this one with PEFT"
MAX_R = (1 << 31) - 1
MAX_ALPHA = float(np.finfo(np.float32).max)
DAMAGED = "the adapter is of another model, or damaged"
# These change no number, whatever their value, or which tensors there are, which the file itself says.
NEUTRAL = {"auto_mapping", "inference_mode", "megatron_core", "peft_version", "revision", "parent_library", "qalora_group_size",
           "runtime_config", "base_model_name_or_path", "lora_dropout", "layers_to_transform", "layers_pattern", "exclude_modules"}
READ = {"peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights", "target_modules"}
TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


class Adapter(NamedTuple):
    r: int
    scaling: float
    pairs: Dict[str, Dict[str, Tensor]]  # {name of the weight in the model: {"A": [r, in], "B": [out, r]}}


def read_adapter(path):
    """(Adapter, adapter_config.json)"""
    file = os.path.join(path, "adapter_config.json")
    if not os.path.isdir(path):
        raise UserError(USAGE, path, "no such directory", "name a PEFT adapter directory")
    if not os.path.isfile(file) and os.path.isfile(os.path.join(path, "adapter", "adapter_config.json")):
        raise UserError(USAGE, file, "no such file, but a run directory found", f"name {os.path.join(path, 'adapter')}")
    config = read_json(file, "name a PEFT adapter directory")
    r, scaling = read_scaling(file, config)
    weights = os.path.join(path, "adapter_model.safetensors")
    if not os.path.isfile(weights):
        raise UserError(BAD_FILE, path, "no adapter_model.safetensors found; pickled weights are not read",
                        "load the adapter in PEFT once and save it with save_pretrained")
    pairs = {}
    for name, tensor in read_header(weights, DAMAGED).items():
        match = TENSOR.fullmatch(name)
        if not match:
            raise UserError(BAD_FILE, weights, f"{name} found, wanted lora_A and lora_B of linear layers alone", ONLY_PLAIN)
        pairs.setdefault(match[1] + ".weight", {})[match[2]] = tensor
    if not pairs:
        raise UserError(BAD_FILE, weights, "holds no tensor", DAMAGED)
    check_names(weights, config["target_modules"], pairs)
    return Adapter(r, scaling, pairs), config


def read_scaling(file, config):
    def refuse(key, wanted):
        raise UserError(BAD_FILE, file, f"{key} is {json.dumps(config.get(key))[:80]}, wanted {wanted}", ONLY_PLAIN)

    if config.get("peft_type") != "LORA":
        refuse("peft_type", '"LORA"')
    if config.get("bias", "none") != "none":
        refuse("bias", '"none"')
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        refuse("init_lora_weights", "one that leaves the model as it is")
    for key, value in config.items():
        if key not in NEUTRAL | READ and value not in (None, False) and value != [] and value != {}:
            refuse(key, "it off")
    r, alpha, rslora = config.get("r"), config.get("lora_alpha"), config.get("use_rslora") or False
    if not isinstance(r, int) or isinstance(r, bool) or not 1 <= r <= MAX_R:
        refuse("r", f"an integer from 1 to {MAX_R}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not abs(alpha) <= MAX_ALPHA:
        refuse("lora_alpha", "a number that float32 holds")
    if not isinstance(rslora, bool):
        refuse("use_rslora", "true or false")
    targets = config.get("target_modules")
    if not isinstance(targets, str) and not (isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)):
        refuse("target_modules", "a list of names")
    return r, alpha / math.sqrt(r) if rslora else alpha / r


def is_target(weight, targets):
    module = weight[:-len(".weight")]
    return any(module == target or module.endswith("." + target) for target in targets)


def check_names(file, targets, pairs):
    for weight, pair in pairs.items():
        if len(pair) != 2:
            raise UserError(BAD_FILE, file, f"{weight} has lora_{''.join(pair)} alone, wanted lora_A and lora_B", DAMAGED)
        if isinstance(targets, list) and not is_target(weight, targets):
            raise UserError(BAD_FILE, file, f"an adapter of {weight} found, which target_modules does not name", DAMAGED)


def check_against_model(adapter, config, weights, file):
    """weights: {name: Tensor} of the model. Each adapter has its weight, and each weight that is a target its adapter."""
    for weight, pair in adapter.pairs.items():
        if weight not in weights:
            tied = " (it is tied to the embedding)" if weight == "lm_head.weight" else ""
            raise UserError(BAD_FILE, file, f"an adapter of {weight} found, which the model does not have{tied}", DAMAGED)
        wanted = weights[weight].shape
        a, b = pair["A"].shape, pair["B"].shape
        if len(wanted) != 2 or a != (adapter.r, wanted[1]) or b != (wanted[0], adapter.r):
            raise UserError(BAD_FILE, file, f"{weight} is {shape_text(wanted)} in the model, the adapter has B {shape_text(b)} and "
                            f"A {shape_text(a)} with r = {adapter.r}", DAMAGED)
    targets = config["target_modules"]
    if isinstance(targets, str) or any(config.get(key) for key in ("layers_to_transform", "layers_pattern", "exclude_modules")):
        return
    lacking = [name for name, tensor in weights.items()
               if name.endswith(".weight") and len(tensor.shape) == 2 and is_target(name, targets) and name not in adapter.pairs]
    if lacking:
        raise UserError(BAD_FILE, file, f"no adapter of {lacking[0]} ({len(lacking)} in all), which target_modules names", DAMAGED)


def shape_text(shape):
    return "[" + ", ".join(map(str, shape)) + "]"


def read_pair(pair):
    """A and B in float32."""
    matrices = []
    for which in "AB":
        tensor = pair[which]
        values = read_rows(tensor, 0, tensor.rows())
        if not is_finite(values, tensor.dtype):
            raise UserError(BAD_FILE, tensor.path, f"{tensor.name} holds numbers that are not finite",
                            "merge an adapter of a run that did not diverge")
        matrices.append(np.ascontiguousarray(to_float32(values, tensor.dtype)))
    return matrices
