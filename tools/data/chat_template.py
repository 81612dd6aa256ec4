"""The model's chat template: a Jinja program that writes a conversation as text, run as Hugging Face transformers runs it.

Sandboxed, trim_blocks and lstrip_blocks, loop controls, raise_exception, strftime_now, a tojson that escapes no HTML, and
{% generation %} blocks, which the authors of some templates put around the replies of the assistant.
"""
import json
import os
import re
import time

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from .errors import BAD_FILE, UserError

# Private-use characters: no text to be trained on contains them, and no filter of a template changes them.
OPEN_MARK, CLOSE_MARK = "\U000f8e01", "\U000f8e02"


class TemplateFault(Exception):
    """The template refuses a conversation, or fails on it."""


class GenerationBlocks(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: its body, between marks when the environment asks for them."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write_body"), [], [], body).set_lineno(line)

    def _write_body(self, caller):
        return OPEN_MARK + caller() + CLOSE_MARK if self.environment.mark_generation else caller()


class ChatTemplate:
    """sources: template texts by name: "default", and "tool_use" where the model has another one for rows with tools."""

    def __init__(self, sources, where, special_tokens):
        self.sources = sources
        self.special_tokens = special_tokens
        self.wrote_date = False
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, jinja2.ext.loopcontrols])
        environment.extend(mark_generation=False)
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = self.strftime_now
        self.environment = environment
        try:
            self.compiled = {name: environment.from_string(source) for name, source in sources.items()}
        except jinja2.TemplateSyntaxError as error:
            raise UserError(BAD_FILE, f"{where}:{error.lineno}", f"the chat template is no valid Jinja ({error.message})",
                            "take the template from the model's publisher again")

    def render(self, messages, tools=None, add_generation_prompt=False):
        name = "tool_use" if tools and "tool_use" in self.compiled else "default"
        try:
            return self.compiled[name].render(messages=messages, tools=tools, documents=None,
                                              add_generation_prompt=add_generation_prompt, **self.special_tokens)
        except Exception as error:  # a template is a program: it may fail with any exception on an unforeseen row
            raise TemplateFault(str(error) or type(error).__name__)

    def generation_spans(self, messages, tools, text):
        """Characters [begin, end) of text inside {% generation %} blocks; None where the template does not say."""
        if not any("endgeneration" in source for source in self.sources.values()):
            return None
        self.environment.mark_generation = True
        try:
            marked = self.render(messages, tools)
        finally:
            self.environment.mark_generation = False
        spans, plain, begin = [], [], None
        for piece in re.split(f"([{OPEN_MARK}{CLOSE_MARK}])", marked):
            position = sum(map(len, plain))
            if piece == OPEN_MARK:
                begin = position
            elif piece == CLOSE_MARK:
                spans.append((begin, position))
            else:
                plain.append(piece)
        return spans if "".join(plain) == text else None

    def strftime_now(self, form):
        self.wrote_date = True
        fixed = os.environ.get("SOURCE_DATE_EPOCH")  # the convention for builds that repeat to the byte
        return time.strftime(form, time.gmtime(int(fixed)) if fixed else time.localtime())


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.TemplateError(message)
