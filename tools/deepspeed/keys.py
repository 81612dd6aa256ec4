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
CORRECT = "correct it in the file"


class OneValueLoader(yaml.SafeLoader):
    """A key that stands twice is an error, as it is to DeepSpeed."""

    def construct_mapping(self, node, deep=False):
        pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
        names = [str(key) for key, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands twice")
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
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(BAD_FILE, path, f"is neither JSON nor YAML ({' '.join(str(error).split())})", CORRECT)
    if not isinstance(value, dict) or not value:
        raise UserError(BAD_FILE, path, "holds no keys", "name an Accelerate YAML or a DeepSpeed JSON file")
    return value


def without_duplicates(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} stands twice")
    return found


def shown(value):
    """A value on one line, fit for a comment."""
    if isinstance(value, str) and value.isprintable() and len(value) <= 60:
        return value
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Keys:
    def __init__(self, path, mapping, prefix="", automatic=None):
        """prefix: put before the name of each key when it is shown. automatic: gets (shown name, key of input.toml)."""
        self.path, self.prefix = path, prefix
        self.automatic = automatic if automatic is not None else []
        self.values = {}
        self._flatten("", mapping)

    def _flatten(self, at, value):
        if isinstance(value, dict):
            for name, inner in value.items():
                self._flatten(f"{at}.{name}" if at else str(name), inner)
        elif value is not None:
            self.values[at] = value
        if len(self.values) > MAX_KEYS:
            raise UserError(BAD_FILE, self.path, f"has more than {MAX_KEYS} keys", "name a configuration file")

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
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or number < 0 or positive and number == 0:
            raise self.bad(name, value, "a number above 0" if positive else "a number of at least 0")
        return number

    def integer(self, name, target="", least=0):
        number = self.values.get(name)
        value = self.number(name, target)
        if value is None:
            return None
        if value != int(value) or value < least:
            raise self.bad(name, number, f"an integer of at least {least}")
        return int(value)

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
