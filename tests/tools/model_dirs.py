"""Small Hugging Face model directories for the tests of the tools: the tokenizer of input/models/tiny-llama with more special
tokens, or a sentencepiece-like one with BOS, each with a chat template in the manner of a well-known family.
"""
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY_LLAMA = os.path.join(ROOT, "input", "models", "tiny-llama")
sys.path.insert(0, os.path.join(ROOT, "tools"))

from tokenizers import Tokenizer, decoders, models, normalizers, processors  # noqa: E402

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# Writes BOS itself and trims contents.
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
          "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
# No generation prompt; refuses roles that do not alternate.
MISTRAL = ("{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
           "{{ raise_exception('roles must alternate') }}{% endif %}"
           "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
           "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}")
# Thinking stays in replies after the last question, and goes from earlier ones; an empty one is written into a last reply.
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}{%- set said = m.content %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' }}
        {%- endif %}
        {{- said }}
        {%- for call in m.tool_calls or [] %}
            {{- ('\n' if said else '') + '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# The generation prompt opens a thought that no stored reply has.
THINKING_PROMPT = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
GEMMA = ("{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
         "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
         "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
GENERATION = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
              "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}")
# Ends no reply, and has no generation prompt.
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

MORE_SPECIAL = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
                "[INST]", "[/INST]"]


def make_model_dir(path, template, bos=None, eos="<|im_end|>", tokenizer=None, vocab_size=4200):
    os.makedirs(path, exist_ok=True)
    if tokenizer is None:
        tokenizer = Tokenizer.from_file(os.path.join(TINY_LLAMA, "tokenizer.json"))
        tokenizer.add_special_tokens(MORE_SPECIAL)
    tokenizer.save(os.path.join(path, "tokenizer.json"))
    named = {"eos_token": eos, "bos_token": {"content": bos, "lstrip": False} if bos else None}
    write_json(os.path.join(path, "tokenizer_config.json"), {k: v for k, v in named.items() if v})
    write_json(os.path.join(path, "config.json"), {"vocab_size": vocab_size})
    if template is not None:
        with open(os.path.join(path, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(template)
    return path


def sentencepiece_like():
    """Characters with "▁" for spaces and one at the start, <s> put in front by the post-processor: as Llama 2 and Mistral."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?\n"))
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "▁"] + letters + ["▁y", "▁h"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "y"), ("▁", "h")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)
