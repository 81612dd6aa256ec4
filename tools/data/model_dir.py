"""What a Hugging Face model directory says about text: tokenizer.json, tokenizer_config.json, the chat template, and
vocab_size of config.json. No weight is read.
"""
import hashlib
import json
import os
from collections import namedtuple

import tokenizers
from tokenizers import processors

from .chat_template import ChatTemplate
from .errors import BAD_FILE, USAGE, UserError

# tokenizer: without post-processor, so that offsets are untrimmed and no token is added; prefix_ids: what that processor
# puts before a text (BOS); eos_id, template: None if there is none; special_tokens: the texts of all special tokens.
ModelDir = namedtuple("ModelDir", "path tokenizer tokenizer_sha256 vocab_size prefix_ids eos_id special_tokens template")


def load_model_dir(path):
    if not os.path.isdir(path):
        raise UserError(USAGE, path, "no such directory", "name a Hugging Face model directory")
    config = read_json(os.path.join(path, "config.json"), "name a Hugging Face model directory")
    config_of_text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    vocab_size = config_of_text.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise UserError(BAD_FILE, os.path.join(path, "config.json"), f"vocab_size is {vocab_size!r}, wanted a positive integer",
                        "take config.json from the model's publisher again")

    file = os.path.join(path, "tokenizer.json")
    if not os.path.isfile(file):
        raise UserError(USAGE, file, "no such file",
                        "save the tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(file)
    except Exception as error:  # the library raises the bare class
        raise UserError(BAD_FILE, file, f"is no tokenizer ({error})", "take tokenizer.json from the model's publisher again")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix_ids = ids_before_text(tokenizer)
    tokenizer.post_processor = processors.Sequence([])

    named = named_tokens(path)
    if "eos_token" in named:
        eos_id = tokenizer.token_to_id(named["eos_token"])
    else:
        eos_id = config.get("eos_token_id") if isinstance(config.get("eos_token_id"), int) else None
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special and token.content]
    return ModelDir(path, tokenizer, sha256_of_file(file), vocab_size, prefix_ids, eos_id, special,
                    find_template(path, named))


def ids_before_text(tokenizer):
    encoding = tokenizer.encode("a", add_special_tokens=True)
    added = encoding.special_tokens_mask
    return encoding.ids[:added.index(0)] if 0 in added else []


def named_tokens(path):
    """bos_token, eos_token, ... as texts; each may stand as a text or as an object with "content"."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = os.path.join(path, name)
        if os.path.isfile(file):
            for key, value in read_json(file, "").items():
                value = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(value, str):
                    found[key] = value
    return found


def find_template(path, special_tokens):
    file = os.path.join(path, "chat_template.jinja")
    if os.path.isfile(file):
        try:
            with open(file, encoding="utf-8") as stream:
                return ChatTemplate({"default": stream.read()}, file, special_tokens)
        except UnicodeDecodeError as error:
            raise UserError(BAD_FILE, file, f"is no UTF-8 ({error})", "take it from the model's publisher again")
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = os.path.join(path, name)
        found = read_json(file, "").get("chat_template") if os.path.isfile(file) else None
        if isinstance(found, list):
            found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        elif isinstance(found, str):
            found = {"default": found}
        if not found:
            continue
        if not isinstance(found, dict) or not isinstance(found.get("default"), str):
            raise UserError(BAD_FILE, file, 'chat_template has no template named "default"',
                            "put the template to be used into chat_template.jinja")
        sources = {key: found[key] for key in ("default", "tool_use") if isinstance(found.get(key), str)}
        return ChatTemplate(sources, file, special_tokens)
    return None


def read_json(file, remedy):
    if not os.path.isfile(file):
        raise UserError(USAGE, file, "no such file", remedy)
    try:
        with open(file, encoding="utf-8") as stream:
            value = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise UserError(BAD_FILE, file, f"is no JSON ({error})", "take it from the model's publisher again")
    if not isinstance(value, dict):
        raise UserError(BAD_FILE, file, "is no JSON object", "take it from the model's publisher again")
    return value


def sha256_of_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
