"""Text with target characters -> token ids with a loss mask.

The whole text is encoded once, so the ids are those of Hugging Face; a token is a target if it overlaps a target span. The
tokenizer's BOS goes in front unless the text brings it already: never both. The first token of a document is no target, as
nothing stands before it to predict it from.
"""
from typing import List, NamedTuple, Tuple

import numpy as np

from .errors import BAD_FILE, UserError


class MarkedText(NamedTuple):
    text: str
    spans: List[Tuple[int, int]]  # target characters, [begin, end)
    append_eos: bool              # with the EOS token as a last target, for text that no template has ended


def encode(model, marked_texts):
    """[(ids, mask)] as arrays, one pair for each marked text."""
    encodings = model.tokenizer.encode_batch([m.text for m in marked_texts], add_special_tokens=False)
    return [tokens_and_mask(model, m, e.ids, e.offsets) for m, e in zip(marked_texts, encodings)]


def tokens_and_mask(model, marked, ids, offsets):
    begin, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    mask = np.zeros(len(ids), np.uint8)
    for span_begin, span_end in marked.spans:
        # A token of no width (a space that the tokenizer itself puts before a word) belongs to what follows it.
        mask |= (begin < span_end) & ((end > span_begin) | ((begin == end) & (begin >= span_begin)))
    before, after = [], []
    if model.prefix_ids and ids[:len(model.prefix_ids)] != model.prefix_ids:
        before = model.prefix_ids
    if marked.append_eos and model.eos_id is not None and ids[-1:] != [model.eos_id]:
        after = [model.eos_id]
    ids = np.array(before + ids + after, dtype=np.int64)
    mask = np.concatenate([np.zeros(len(before), np.uint8), mask, np.ones(len(after), np.uint8)])
    mask[:1] = 0
    if len(ids) and ids.max() >= model.vocab_size:
        raise UserError(BAD_FILE, model.path, f"the tokenizer gives token id {ids.max()}, but vocab_size of config.json is "
                        f"{model.vocab_size}", "use the tokenizer that belongs to the model")
    return ids, mask
