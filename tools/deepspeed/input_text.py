"""A translation as the text of an input.toml: every value with the key that it comes from, and at the end what is left out."""
from .keys import shown

# As in utrain --help-config. None: to be set by hand, since no such file has it.
SECTIONS = {
    "model": {"path": "Hugging Face model directory", "dtype": None},
    "lora": {},
    "data": {"train": "token data set, from tools/prepare"},
    "train": dict.fromkeys(("max_steps", "global_batch_size", "gradient_accumulation_steps", "micro_batch_size", "lr", "schedule",
                            "warmup_steps", "weight_decay", "betas", "eps", "max_grad_norm", "recompute")),
    "parallel": dict.fromkeys(("strategy", "shard_group", "offload_optimizer", "offload_params")),
    "log": dict.fromkeys(("every", "tensorboard")),
    "run": {"dir": "run directory", "backend": None},
}

# (key, value): what this version of utrain takes instead. Written all the same, for the version that has them.
NOT_BUILT = {
    ("log.tensorboard", True): "false",
}


def toml_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'  # only words of our own
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


def input_text(translation, name):
    settings = translation.settings
    lines = [f"# From {comment(' and '.join(translation.sources))}, by tools/import_deepspeed."]
    if translation.ranks:
        # Without the flags mpirun refuses more ranks than cores, and ties each rank to one core.
        lines.append(f"# For {translation.ranks} rank{'' if translation.ranks == 1 else 's'}: mpirun -np {translation.ranks} --oversubscribe --bind-to none "
                     f"./utrain {comment(name)}")
    for section, keys in SECTIONS.items():
        rows = []
        for key, to_set in keys.items():
            if f"{section}.{key}" in settings:
                setting = settings[f"{section}.{key}"]
                rows.append((f"{key} = {toml_value(setting.value)}", setting.source))
            elif to_set:
                rows.append((f'# {key} = ""', f"to be set: {to_set}"))
        if section == "train" and "train.max_steps" not in settings:
            rows.insert(0, ("# epochs = 1", "to be set: this or max_steps"))
        if rows:
            width = max(len(row) for row, _ in rows)
            lines += ["", f"[{section}]"] + [f"{row:<{width}}  # {comment(source)}" for row, source in rows]
    for title, entries in remarks(translation) + [("Always so in utrain, nothing to set:", translation.same)]:
        if entries:
            lines += ["", f"# {title}"] + [f"#   {comment(entry)}" for entry in entries]
    return "\n".join(lines) + "\n"


def remarks(translation):
    """[(title, [line])] of what the user has to look at."""
    automatic = [f"{source}: set {target}" if target else source for source, target in translation.automatic
                 if target not in translation.settings]
    without = [f"{source} = {value}: {reason}" for source, value, reason in translation.without_counterpart]
    not_built = [f"{key} = {toml_value(value)}, from {translation.settings[key].source}: set {instead}"
                 for (key, value), instead in NOT_BUILT.items()
                 if key in translation.settings and translation.settings[key].value == value]
    return [("Contradictions:", translation.contradictions),
            ("Not in this version of utrain, which will say so:", not_built),
            ('Left to the Trainer ("auto"), so left out here:', automatic),
            ("No counterpart:", without)]


def comment(text):
    """Without line ends and control characters, which would end a comment or be refused in it."""
    return text if text.isprintable() else shown([text])[2:-2]
