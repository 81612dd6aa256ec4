"""The weights of a Hugging Face model directory: model.safetensors, or else the shards that its index names."""
import os
from typing import Dict

from data.errors import BAD_FILE, USAGE, UserError
from data.model_dir import read_json

from .safetensors_file import Tensor, read_header

AGAIN = "take the model from its publisher again"
INDEX = "model.safetensors.index.json"
# Without tie_word_embeddings in config.json. Other families tie, or are no causal language models.
UNTIED_BY_DEFAULT = ("llama", "mistral", "qwen2", "qwen3")


def read_model_weights(path) -> Dict[str, Tensor]:
    """{name: Tensor} in the order of the files, which is that of the layers in most models."""
    single, index = os.path.join(path, "model.safetensors"), os.path.join(path, INDEX)
    if os.path.isfile(single):
        return read_header(single, AGAIN)
    if not os.path.isfile(index):
        if any(name.endswith((".bin", ".pt", ".pth")) for name in os.listdir(path)):
            raise UserError(BAD_FILE, path, "pickled weights found, model.safetensors wanted: they can run code and are not read",
                            "load the model in transformers once and save it with save_pretrained")
        raise UserError(USAGE, single, "no such file, and no index of shards", "name a Hugging Face model directory")
    weight_map = read_json(index, AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(BAD_FILE, index, "no weight_map", AGAIN)
    weights = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        file = os.path.join(path, shard)
        if os.path.basename(shard) != shard or not os.path.isfile(file):
            raise UserError(BAD_FILE, index, f"names the shard {shard!r}, which is not in the directory", AGAIN)
        for name, tensor in read_header(file, AGAIN).items():
            if weight_map.get(name) == shard:
                weights[name] = tensor
    missing = sorted(set(weight_map) - set(weights))
    if missing:
        raise UserError(BAD_FILE, index, f"{missing[0]} ({len(missing)} in all) is not in the shard that the index names", AGAIN)
    return weights


def check_head(path, config, weights):
    """An untied model has its own head: without it, what is written could not be loaded."""
    if config.get("model_type") in UNTIED_BY_DEFAULT and not config.get("tie_word_embeddings") and "lm_head.weight" not in weights:
        raise UserError(BAD_FILE, path, "no lm_head.weight found, which a model without tie_word_embeddings has", AGAIN)


def plan_shards(tensors, element_bytes, max_bytes):
    """[[Tensor]]: as many in a row as fit; a tensor larger than max_bytes is alone."""
    shards, size = [[]], 0
    for tensor in tensors:
        bytes_of = tensor.rows() * tensor.row_elements() * element_bytes
        if shards[-1] and size + bytes_of > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += bytes_of
    return shards


def shard_name(index, count):
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
