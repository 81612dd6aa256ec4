"""Which characters of a rendered conversation are replies of the assistant: from the first character that the model itself
writes to the end of the token that ends its turn (<|im_end|>, <|eot_id|>, </s>, ...).

Found by position only: no text is searched for, since a user may write what the assistant writes. In this order:
  1. {% generation %} blocks, where the template has one for each reply.
  2. Prefixes: the conversation before the reply with the generation prompt, and the conversation up to and with the reply,
     where both are prefixes of the full rendering.
  3. A placeholder in the place of this one reply: what stands before and after it stands in the full rendering too. This
     serves templates that rewrite earlier turns.
A conversation in which none of these gives an answer that fits the full rendering is refused (Uncertain).
"""
import re
from typing import NamedTuple

from .chat_template import TemplateFault
from .errors import BAD_FILE, UserError

PLACEHOLDER = "placeholder5d7c1e90reply"
NEVER = re.compile(r"(?!)")


class Uncertain(Exception):
    """The place of a reply in the rendering is not certain."""


class Span(NamedTuple):
    begin: int
    end: int
    ended: bool  # the last token of the span is the one that ends the turn


class ReplyFinder:
    def __init__(self, template, special_tokens):
        self.template = template
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first))) if special_tokens else NEVER
        question, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": PLACEHOLDER}
        self.has_generation_prompt = self.render([question], None, True) != self.render([question], None)
        probe = self.render([question, reply], None)
        at = probe.find(PLACEHOLDER) if probe else -1
        if probe and at < 0:
            raise UserError(BAD_FILE, "chat template", "does not write a message whose content is a text",
                            "use the template of a text model")
        found = self.special.search(probe, at + len(PLACEHOLDER)) if at >= 0 else None
        self.end_token = found.group() if found else None

    def find(self, messages, tools, first_target):
        """The full rendering and the Span of each assistant message from first_target on."""
        text = self.template.render(messages, tools)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        marked = self.template.generation_spans(messages, tools, text)
        if marked is not None and len(marked) == len(turns):
            spans = [self.with_end_token(text, begin, end, end) for begin, end in marked]
        else:
            spans = [self.span_of_turn(text, messages, tools, i) for i in turns]
        for span, following in zip(spans, spans[1:]):
            if span.end > following.begin:
                raise Uncertain("two replies overlap in the rendering")
        return text, [span for i, span in zip(turns, spans) if i >= first_target]

    def span_of_turn(self, text, messages, tools, turn):
        hole = None if "tool_calls" in messages[turn] else self.place_of_content(text, messages, tools, turn)
        begin = self.begin_of_turn(text, messages, tools, turn, hole)
        until_end = self.render(messages[:turn + 1], tools)
        if until_end is not None and len(until_end) >= begin and text.startswith(until_end):
            return self.with_end_token(text, begin, len(until_end), hole[1] if hole else None)
        if hole:
            token = self.special.match(text, end_of_space(text, hole[1])) if self.end_token else None
            return Span(begin, token.end() if token else hole[1], bool(token))
        # Tool calls in a turn that is rewritten: its end token is the last one before the content of the next message.
        next_hole = self.place_of_content(text, messages, tools, turn + 1) if turn + 1 < len(messages) else None
        if next_hole and self.end_token:
            at = text.rfind(self.end_token, begin, next_hole[0])
            if at >= 0:
                return Span(begin, at + len(self.end_token), True)
        raise Uncertain(f"where the reply in message {turn} ends in the rendering is not certain")

    def begin_of_turn(self, text, messages, tools, turn, hole):
        prompt = self.render(messages[:turn], tools, True)
        if prompt is not None and text.startswith(prompt):
            # Without a generation prompt the template writes the header of a reply, if any, together with the reply.
            if self.has_generation_prompt or not hole or not text[len(prompt):hole[0]].strip():
                return len(prompt)
        # The header is what stands before a plain reply in the same place.
        plain = messages[:turn] + [{"role": "assistant", "content": PLACEHOLDER}] + messages[turn + 1:]
        header = (self.render(plain, tools) or "").partition(PLACEHOLDER)
        if header[1] and text.startswith(header[0]) and (hole is None or len(header[0]) <= hole[0]):
            return len(header[0])
        raise Uncertain(f"where the reply in message {turn} begins in the rendering is not certain")

    def with_end_token(self, text, begin, end, content_end):
        """The span from begin, cut or extended so that it ends with the token that ends the turn, where there is one.

        end: where the turn ends, perhaps with white space after the token. content_end: where its content ends, if known.
        """
        stripped = begin + len(text[begin:end].rstrip())
        tokens = list(self.special.finditer(text, begin, end))
        ends_with_token = bool(tokens) and tokens[-1].end() == stripped
        if ends_with_token and len(tokens) == 1:
            return Span(begin, stripped, True)
        if content_end is not None:
            token = self.special.match(text, end_of_space(text, content_end))
            if token and (token.end() <= end or token.group() == self.end_token):
                return Span(begin, self.end_of_adjacent_tokens(text, token.end(), end), True)
        if ends_with_token:
            return Span(begin, stripped, True)
        return Span(begin, content_end if content_end is not None else stripped, False)

    def end_of_adjacent_tokens(self, text, position, end):
        """Some templates end a reply with two tokens, one for its content and one for the turn."""
        token = self.special.match(text, position)
        while token and token.end() <= end:
            position = token.end()
            token = self.special.match(text, position)
        return position

    def place_of_content(self, text, messages, tools, index):
        """[begin, end) of a message's content in text, or None: found by a rendering that differs in this content only."""
        replaced = list(messages)
        replaced[index] = {**messages[index], "content": PLACEHOLDER}
        rendered = self.render(replaced, tools)
        if rendered is None or rendered.count(PLACEHOLDER) != 1:
            return None
        before, after = rendered.split(PLACEHOLDER)
        begin, end = len(before), len(text) - len(after)
        if begin > end or not text.startswith(before) or not text.endswith(after):
            return None
        return (begin, end) if text[begin:end].strip() in messages[index]["content"] else None

    def render(self, messages, tools, add_generation_prompt=False):
        try:
            return self.template.render(messages, tools, add_generation_prompt)
        except TemplateFault:  # parts of a conversation need not be one
            return None


def end_of_space(text, position):
    while position < len(text) and text[position].isspace():
        position += 1
    return position
