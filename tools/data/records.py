"""The input: one JSON object a line, in one of the formats that data sets for fine-tuning come in.

messages           {"messages": [{"role", "content"}, ...], "tools"?}      content: a text, or a list of {"type": "text", "text"}
sharegpt           {"conversations": [{"from", "value"}, ...], "system"?, "tools"?}
prompt_completion  {"prompt", "completion"}                                 two texts, or two lists of messages
alpaca             {"instruction", "input"?, "output"}
text               {"text"}
Each becomes a Conversation, to be written by the chat template, or a Passage, to be encoded as it stands.
"""
import json
import os
from typing import List, NamedTuple, Optional

from .errors import BAD_FILE, USAGE, UserError

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
                  "assistant": "assistant", "model": "assistant", "function_call": "assistant", "tool": "tool",
                  "observation": "tool", "function_response": "tool"}
# The two prompts that the Alpaca data set was published with, for models that have no chat template.
ALPACA_PLAIN = ("Below is an instruction that describes a task. Write a response that appropriately completes the request."
                "\n\n### Instruction:\n{instruction}\n\n### Response:\n")
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. Write a "
                "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
                "\n\n### Response:\n")


class BadRecord(Exception):
    """A record that cannot be used; the others can."""


class Conversation(NamedTuple):
    messages: List[dict]
    tools: Optional[list]
    first_target: int  # replies before this message are context, not targets


class Passage(NamedTuple):
    context: str  # no targets
    text: str     # all targets


def read_records(path):
    """[(line number, object)] of a file of JSON lines; empty lines are skipped."""
    if not os.path.isfile(path):
        raise UserError(USAGE, path, "no such file", "name a file of JSON lines")
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise UserError(BAD_FILE, where, "is no UTF-8", "convert the file to UTF-8")
            except (ValueError, RecursionError) as error:
                raise UserError(BAD_FILE, where, f"is no JSON ({error})", "write one JSON object on each line")
            if not isinstance(record, dict):
                raise UserError(BAD_FILE, where, "is no JSON object", "write one JSON object on each line")
            records.append((number, record))
    if not records:
        raise UserError(BAD_FILE, path, "holds no records", "write one JSON object on each line")
    return records


def detect_format(record):
    if "messages" in record:
        return "messages"
    if "conversations" in record:
        return "sharegpt"
    if "prompt" in record and "completion" in record:
        return "prompt_completion"
    if "instruction" in record and "output" in record:
        return "alpaca"
    return "text" if "text" in record else None


def agree_on_format(path, records):
    """The format that the first record shows; another one later in the file is an error."""
    line, first = records[0]
    wanted = detect_format(first)
    if wanted is None:
        raise UserError(BAD_FILE, f"{path}:{line}", f"no known format has the keys {', '.join(sorted(first)) or '(none)'}",
                        f"rename the keys to those of one of {', '.join(FORMATS)}")
    for line, record in records[1:]:
        found = detect_format(record)
        if found not in (wanted, None):
            raise UserError(BAD_FILE, f"{path}:{line}", f"is of format {found}, the first record of {wanted}",
                            "split the file, or name the format with --format")
    return wanted


def parse_record(record, form, has_template):
    if form == "messages":
        return conversation(plain_messages(record.get("messages"), "messages"), record)
    if form == "sharegpt":
        return conversation(sharegpt_messages(record), record)
    if form == "prompt_completion":
        return parse_prompt_completion(record)
    if form == "alpaca":
        return parse_alpaca(record, has_template)
    return Passage("", text_of(record, "text"))


def conversation(messages, record, first_target=0):
    if not any(message["role"] == "assistant" for message in messages[first_target:]):
        raise BadRecord("no assistant turn")
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise BadRecord('"tools" is a text that is no JSON')
    if tools is not None and not isinstance(tools, list):
        raise BadRecord('"tools" is no list')
    return Conversation(messages, tools or None, first_target)


def plain_messages(messages, key):
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f'"{key}" is no list of messages')
    return [plain_message(message, f'"{key}"[{i}]') for i, message in enumerate(messages)]


def plain_message(message, where):
    """The message with its content as one text; keys that are null are left out, as templates ask whether they are there."""
    if not isinstance(message, dict):
        raise BadRecord(f"{where} is no object")
    if message.get("role") not in ROLES:
        raise BadRecord(f"{where} has role {message.get('role')!r}, wanted one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    elif isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                   for part in content):
            raise BadRecord(f"{where} has content other than text")
        content = "".join(part["text"] for part in content)
    elif not isinstance(content, str):
        raise BadRecord(f"{where} has no content")
    check_unicode(content, where)
    kept = {key: value for key, value in message.items() if value is not None}
    return {**kept, "content": content}


def sharegpt_messages(record):
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadRecord('"conversations" is no list of turns')
    messages = []
    if isinstance(record.get("system"), str) and record["system"]:
        messages.append({"role": "system", "content": record["system"]})
    for i, turn in enumerate(turns):
        if isinstance(turn, dict) and "from" in turn:
            role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
            if role is None:
                raise BadRecord(f'"conversations"[{i}] is from {turn["from"]!r}, wanted human, gpt, system or tool')
            turn = {"role": role, "content": turn.get("value")}
        messages.append(plain_message(turn, f'"conversations"[{i}]'))
    return messages


def parse_prompt_completion(record):
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        context = plain_messages(prompt, "prompt")
        return conversation(context + plain_messages(completion, "completion"), record, len(context))
    if isinstance(prompt, list) or isinstance(completion, list):
        raise BadRecord('"prompt" and "completion" are not both texts or both lists of messages')
    return Passage(text_of(record, "prompt", may_be_empty=True), text_of(record, "completion"))


def parse_alpaca(record, has_template):
    instruction, output = text_of(record, "instruction"), text_of(record, "output")
    context = text_of(record, "input", may_be_empty=True) if record.get("input") is not None else ""
    if has_template:
        question = instruction + "\n\n" + context if context else instruction
        return Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": output}], None, 0)
    prompt = (ALPACA_INPUT if context else ALPACA_PLAIN).format(instruction=instruction, input=context)
    return Passage(prompt, output)


def text_of(record, key, may_be_empty=False):
    text = record.get(key)
    if not isinstance(text, str):
        raise BadRecord(f'"{key}" is no text')
    if not text and not may_be_empty:
        raise BadRecord(f'"{key}" is empty')
    check_unicode(text, f'"{key}"')
    return text


def check_unicode(text, where):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord(f"{where} holds half a surrogate pair, which is no Unicode text")
