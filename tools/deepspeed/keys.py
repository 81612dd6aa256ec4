"""What a configuration file says, as flat keys: {"zero_optimization.stage": 3}. Whoever translates a key takes it away, so that
what is left over has no counterpart. A value that is null counts as not there; "auto" is left to transformers' Trainer.
"""
import json
import math
import os

import yaml

from data.errors import BAD_FILE, IO, USAGE, UserError

MAX_BYTES = 1 << 20
MAX_KEYS = 10_000
MAX_DEPTH = 32
MAX_NAME = 200
MAX_INTEGER = (1 << 63) - 1  # of TOML
CORRECT = "correct it in the file"


class OneValueLoader(yaml.SafeLoader):
    """A key that stands twice is an error, as it is to DeepSpeed. So is a merge: a chain of them doubles with each link."""

    def construct_mapping(self, node, deep=False):
        names = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key that is no plain text")
            name = str(self.construct_object(key, deep=True))
            if name in names:
                raise yaml.YAMLError(f"{shown(name)} stands twice")
            names.add(name)
        return super().construct_mapping(node, deep)


def read_mapping(path):
    """The object in a JSON or YAML file."""
    if not os.path.isfile(path):
        raise UserError(USAGE, path, "no such file", "name an Accelerate YAML or a DeepSpeed JSON file")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        raise UserError(BAD_FILE, path, f"is no UTF-8 text ({error})", CORRECT)
    except OSError as error:
        raise UserError(IO, path, f"cannot be read ({error.strerror})", "check its rights")
    if len(text) > MAX_BYTES:
        raise UserError(BAD_FILE, path, f"has more than {MAX_BYTES} characters", "name a configuration file")
    try:
        if text.lstrip().startswith("{") and not path.lower().endswith((".yaml", ".yml")):
            value = json.loads(text, object_pairs_hook=without_duplicates)
        else:
            value = yaml.load(text, OneValueLoader)
    # All that the constructors of PyYAML raise for a text that is not of the type its tag names.
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, yaml.YAMLError, RecursionError) as error:
        raise UserError(BAD_FILE, path, f"is neither JSON nor YAML ({' '.join(str(error).split())[:300]})", CORRECT)
    if not isinstance(value, dict) or not value:
        raise UserError(BAD_FILE, path, "holds no keys", "name an Accelerate YAML or a DeepSpeed JSON file")
    check_size(path, value)
    return value


def without_duplicates(pairs):
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} stands twice")
        found[name] = value
    return found


def check_size(path, mapping):
    """Every visit counts, since an alias of YAML makes one value stand at many places, or within itself."""
    def refuse(what):
        raise UserError(BAD_FILE, path, what, "name a configuration file")

    visited, characters = 0, 0
    to_visit = [(mapping, 0)]
    while to_visit:
        value, depth = to_visit.pop()
        visited += 1
        inner = ()
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, (str, int, float, type(None))) or isinstance(name, int) and abs(name) > MAX_INTEGER:
                    refuse("has a key that is no text")
                if isinstance(name, str) and len(name) > MAX_NAME:
                    refuse(f"has a key of more than {MAX_NAME} characters")
            inner = value.values()
        elif isinstance(value, (list, tuple, set)):
            inner = value
        elif isinstance(value, (str, bytes)):
            characters += len(value)
        elif isinstance(value, int) and value.bit_length() > 1024:
            refuse("has an integer of more than 1024 bits")
        if visited + len(to_visit) + len(inner) > MAX_KEYS:
            refuse(f"has more than {MAX_KEYS} keys and values")
        if characters > MAX_BYTES:
            refuse(f"has more than {MAX_BYTES} characters, its aliases written out")
        if inner and depth == MAX_DEPTH:
            refuse(f"is nested more than {MAX_DEPTH} deep")
        to_visit.extend((element, depth + 1) for element in inner)


def shown(value):
    """A value on one line, fit for a comment."""
    if isinstance(value, str) and value.isprintable() and len(value) <= 60:
        return value
    text = json.dumps(value[:61] if isinstance(value, str) else value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Keys:
    def __init__(self, path, mapping, prefix="", automatic=None):
        """prefix: put before the name of each key when it is shown. automatic: gets (shown name, key of input.toml)."""
        self.path, self.prefix = path, prefix
        self.automatic = automatic if automatic is not None else []
        self.values = {}
        self._flatten("", mapping)

    # As deep and as wide as read_mapping lets a file be.
    def _flatten(self, at, value):
        if isinstance(value, dict):
            for name, inner in value.items():
                self._flatten(f"{at}.{name}" if at else str(name), inner)
        elif value is not None:
            self.values[at] = value

    def label(self, name):
        name = self.prefix + name
        return name if name.isprintable() else json.dumps(name)

    def has(self, name):
        return name in self.values or any(key.startswith(name + ".") for key in self.values)

    def take(self, name, target=""):
        """None where it is absent or "auto"; target: the key of input.toml that "auto" leaves open."""
        value = self.values.pop(name, None)
        if isinstance(value, str) and value.strip().lower() == "auto":
            self.automatic.append((self.label(name), target))
            return None
        return value

    def bad(self, name, value, wanted):
        return UserError(BAD_FILE, self.path, f"{self.label(name)} is {shown(value)}, wanted {wanted}", CORRECT)

    def number(self, name, target="", positive=False):
        """At least 0; texts as well, since YAML takes 1e-5 for one."""
        value = self.take(name, target)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or number < 0 or positive and number == 0:
            raise self.bad(name, value, "a number above 0" if positive else "a number of at least 0")
        return number

    def integer(self, name, target="", least=0):
        stated = self.values.get(name)
        number = self.number(name, target)
        if number is None:
            return None
        if number != int(number) or not least <= number <= MAX_INTEGER:
            raise self.bad(name, stated, f"an integer of at least {least}" + (" and below 2^63" if number >= least else ""))
        exact = stated if isinstance(stated, int) else int(number)
        if exact > MAX_INTEGER:
            raise self.bad(name, stated, "an integer below 2^63")
        return exact

    def boolean(self, name, target=""):
        value = self.take(name, target)
        if value is None or isinstance(value, bool):
            return value
        if str(value).strip().lower() in ("true", "false"):
            return str(value).strip().lower() == "true"
        raise self.bad(name, value, "true or false")

    def text(self, name, target=""):
        value = self.take(name, target)
        if value is None or isinstance(value, str):
            return value
        raise self.bad(name, value, "a text")
