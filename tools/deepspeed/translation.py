"""Keys of Accelerate (default_config.yaml) and DeepSpeed (ds_config.json) as keys of input.toml.

Where two keys give one, the first counts and a difference is a contradiction. Nothing is guessed: what a file leaves to the
Trainer ("auto") stays open, and what has no counterpart is listed.
"""
import os
from typing import Dict, List, NamedTuple, Tuple, Union

from data.errors import BAD_FILE, USAGE, UserError

from .keys import Keys, read_mapping, shown
from .reasons import is_off_here, reason_for

OF_ACCELERATE = {"compute_environment", "distributed_type", "deepspeed_config", "mixed_precision", "num_processes", "num_machines"}
OF_DEEPSPEED = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                "gradient_clipping", "optimizer", "scheduler", "fp16", "bf16", "activation_checkpointing", "steps_per_print"}
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


class Setting(NamedTuple):
    value: Union[str, int, float, bool, List[float]]
    source: str  # "zero_optimization.stage = 3"


class Translation:
    def __init__(self):
        self.sources: List[str] = []
        self.settings: Dict[str, Setting] = {}
        self.contradictions: List[str] = []
        self.automatic: List[Tuple[str, str]] = []            # (key, key of input.toml or "")
        self.same: List[str] = []                             # keys that say what always holds here
        self.without_counterpart: List[Tuple[str, str, str]] = []  # (key, value, reason)
        self.ranks = None
        self.batch = {}  # {"train": (rows, source), "micro": ..., "accumulation": ...}

    def set(self, key, value, source):
        old = self.settings.get(key)
        if old is None:
            self.settings[key] = Setting(value, source)
        elif old.value == value:
            self.settings[key] = Setting(value, f"{old.source}; {source}")
        else:
            self.contradictions.append(f"{source}, but {old.source}: {key} is taken from the latter")

    def take_batch(self, what, keys, name, target):
        rows = keys.integer(name, target, least=1)
        if rows is None:
            return
        source = f"{keys.label(name)} = {rows}"
        if what in self.batch and self.batch[what][0] != rows:
            self.contradictions.append(f"{source}, but {self.batch[what][1]}: the latter is taken")
        self.batch.setdefault(what, (rows, source))

    def leave(self, keys):
        for name, value in list(keys.values.items()):
            if is_off_here(name, value):
                self.same.append(f"{keys.label(name)} = {shown(value)}")
            else:
                self.without_counterpart.append((keys.label(name), shown(value), reason_for(name)))
        keys.values.clear()


def translate(path, ranks=None):
    """ranks: how many the file is for, None where only the file knows."""
    mapping = read_mapping(path)
    out = Translation()
    out.ranks = ranks
    if OF_ACCELERATE & set(mapping):
        out.sources.append(f"{os.path.basename(path)} (Accelerate)")
        translate_accelerate(Keys(path, mapping, automatic=out.automatic), out)
    elif OF_DEEPSPEED & set(mapping):
        out.sources.append(f"{os.path.basename(path)} (DeepSpeed)")
        keys = Keys(path, mapping, automatic=out.automatic)
        translate_deepspeed(keys, out)
        out.leave(keys)
    else:
        raise UserError(BAD_FILE, path, "no key of Accelerate or DeepSpeed found", "name default_config.yaml or ds_config.json")
    settle_batch(out)
    return out


def translate_accelerate(keys, out):
    for name in ("mixed_precision", "distributed_type"):
        if keys.values.get(name) is False:  # YAML's reading of a bare no
            keys.values[name] = "NO"
    if keys.values.get("num_processes") == -1:  # whoever launches says it
        keys.take("num_processes")
    processes = keys.integer("num_processes", least=1)
    if out.ranks is None:
        out.ranks = processes
    elif processes not in (None, out.ranks):
        out.contradictions.append(f"num_processes = {processes}, but --ranks = {out.ranks}: the latter is taken")

    file = keys.text("deepspeed_config.deepspeed_config_file")
    if file is not None and file.lower() != "none":
        named = find_named_file(file, keys.path)
        out.sources.append(f"{os.path.basename(named)} (DeepSpeed)")
        inner = Keys(named, read_mapping(named), os.path.basename(named) + ": ", out.automatic)
        beside = [keys.label(name) for name in keys.values if name.startswith("deepspeed_config.") and is_of_zero(name)]
        if beside:
            out.contradictions.append(f"{', '.join(beside)} beside deepspeed_config_file: Accelerate ignores or refuses them; "
                                      f"{os.path.basename(named)} counts")
        translate_deepspeed(inner, out)
        out.leave(inner)
    kind = keys.text("distributed_type")
    if kind is not None:
        take_distributed_type(keys, out, kind, named=file is not None)
    if keys.values.get("use_cpu") is True:
        keys.take("use_cpu")
        out.set("run.backend", "cpu", "use_cpu = true")
    precision = keys.text("mixed_precision", "model.dtype")
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(str(precision).lower())
    if dtype:
        out.set("model.dtype", dtype, f"mixed_precision = {precision}")
    elif precision is not None:
        keys.values["mixed_precision"] = precision

    at = "deepspeed_config."
    take_stage(keys, out, at + "zero_stage")
    take_offload(keys, out, at + "offload_optimizer_device", "parallel.offload_optimizer")
    take_offload(keys, out, at + "offload_param_device", "parallel.offload_params")
    out.take_batch("accumulation", keys, at + "gradient_accumulation_steps", "train.gradient_accumulation_steps")
    take_number(keys, out, at + "gradient_clipping", "train.max_grad_norm")
    for name in ("zero3_init_flag", "zero3_save_16bit_model"):
        take_same(keys, out, at + name, True)
    out.leave(keys)


def is_of_zero(name):
    return any(word in name for word in ("zero_stage", "gradient_", "offload_", "zero3_save"))


def find_named_file(file, beside):
    """As Accelerate, from the working directory; else beside the file that names it."""
    for place in (file, os.path.join(os.path.dirname(beside), file), os.path.join(os.path.dirname(beside), os.path.basename(file))):
        if os.path.isfile(place):
            return place
    raise UserError(USAGE, file, f"no such file, named by deepspeed_config_file of {beside}", "put it there, or correct the name")


def take_distributed_type(keys, out, kind, named):
    source = f"distributed_type = {kind}"
    if kind == "DEEPSPEED":
        if not named and "deepspeed_config.zero_stage" not in keys.values:
            out.set("parallel.strategy", "zero2", f"{source} without zero_stage, whose default is 2")
        else:
            out.same.append(source)
    elif kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        out.set("parallel.strategy", "ddp", source)
        if kind == "MULTI_CPU":
            out.set("run.backend", "cpu", source)
    else:
        keys.values["distributed_type"] = kind


def translate_deepspeed(keys, out):
    take_precision(keys, out)
    out.take_batch("train", keys, "train_batch_size", "train.global_batch_size")
    out.take_batch("micro", keys, "train_micro_batch_size_per_gpu", "train.micro_batch_size")
    out.take_batch("accumulation", keys, "gradient_accumulation_steps", "train.gradient_accumulation_steps")
    # A scheduler of DeepSpeed overrules the optimizer's lr.
    take_scheduler(keys, out)
    take_optimizer(keys, out)
    take_number(keys, out, "gradient_clipping", "train.max_grad_norm")
    if keys.boolean("activation_checkpointing.cpu_checkpointing", "train.recompute"):
        out.set("train.recompute", "offload", f"{keys.label('activation_checkpointing.cpu_checkpointing')} = true")
    take_zero(keys, out)
    steps = keys.values.get("steps_per_print")
    if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
        out.set("log.every", keys.integer("steps_per_print"), f"{keys.label('steps_per_print')} = {steps}")
    if keys.boolean("tensorboard.enabled"):
        out.set("log.tensorboard", True, f"{keys.label('tensorboard.enabled')} = true")


def take_precision(keys, out):
    enabled = {name: keys.boolean(f"{name}.enabled", "model.dtype") for name in ("bf16", "bfloat16", "fp16")}
    for name, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        if enabled[name]:
            out.set("model.dtype", dtype, f"{keys.label(name + '.enabled')} = true")
    if enabled["fp16"] is False and False in (enabled["bf16"], enabled["bfloat16"]) and True not in enabled.values():
        out.set("model.dtype", "float32", f"{keys.label('bf16.enabled')} and fp16.enabled = false")
    for name, value in (("loss_scale", 0), ("initial_scale_power", 16), ("loss_scale_window", 1000), ("hysteresis", 2),
                        ("min_loss_scale", 1), ("consecutive_hysteresis", False)):
        take_same(keys, out, f"fp16.{name}", value)


def take_optimizer(keys, out):
    kind = keys.text("optimizer.type")
    at = "optimizer.params."
    if kind is None and not keys.has("optimizer.params"):
        return
    l2 = keys.values.get(at + "adam_w_mode") is False
    if str(kind).lower() not in ("adam", "adamw") or l2:
        keys.values["optimizer.type"] = kind  # lr and decay of another optimizer mean something else
        for name in [n for n in keys.values if n.startswith(at)]:
            if name.endswith((".lr", ".betas", ".eps", ".weight_decay")):
                out.without_counterpart.append((keys.label(name), shown(keys.values.pop(name)),
                                                "of an optimizer that is not here: the optimizer is AdamW"))
        return
    out.same.append(f"{keys.label('optimizer.type')} = {kind}")
    take_number(keys, out, at + "lr", "train.lr")
    betas = keys.values.get(at + "betas")
    if isinstance(betas, list) and any(str(beta).lower() == "auto" for beta in betas):
        keys.values[at + "betas"] = "auto"
    betas = keys.take(at + "betas", "train.betas")
    if betas is not None:
        try:
            # A text is a list to Python as well, of its digits.
            pair = [float(beta) for beta in betas if not isinstance(beta, bool)] if isinstance(betas, list) else []
        except (TypeError, ValueError, OverflowError):
            pair = []
        if len(pair) != 2 or len(betas) != 2 or not all(0 <= beta < 1 for beta in pair):
            raise keys.bad(at + "betas", betas, "two numbers in [0, 1)")
        out.set("train.betas", pair, f"{keys.label(at + 'betas')} = {shown(pair)}")
    take_number(keys, out, at + "eps", "train.eps", positive=True)
    take_number(keys, out, at + "weight_decay", "train.weight_decay")
    for name in ("adam_w_mode", "bias_correction"):
        take_same(keys, out, at + name, True)
    take_same(keys, out, at + "amsgrad", False)
    if keys.values.pop(at + "torch_adam", None) is not None:
        out.same.append(keys.label(at + "torch_adam"))


def take_scheduler(keys, out):
    kind = keys.text("scheduler.type")
    at = "scheduler.params."
    if kind not in SCHEDULES:
        if kind is not None:
            keys.values["scheduler.type"] = kind
        return
    out.set("train.schedule", SCHEDULES[kind], f"{keys.label('scheduler.type')} = {kind}")
    take_number(keys, out, at + "warmup_max_lr", "train.lr")
    steps = keys.integer(at + "warmup_num_steps", "train.warmup_steps")
    if steps is not None:
        out.set("train.warmup_steps", steps, f"{keys.label(at + 'warmup_num_steps')} = {steps}")
    steps = keys.integer(at + "total_num_steps", "train.max_steps", least=1)
    if steps is not None:
        out.set("train.max_steps", steps, f"{keys.label(at + 'total_num_steps')} = {steps}")
    keys.values.setdefault(at + "warmup_type", "log, DeepSpeed's default")
    for name, value in (("warmup_type", "linear"), ("warmup_min_lr", 0), ("warmup_min_ratio", 0), ("cos_min_ratio", 0)):
        take_same(keys, out, at + name, value)


def take_zero(keys, out):
    at = "zero_optimization."
    take_stage(keys, out, at + "stage")
    take_offload(keys, out, at + "offload_optimizer.device", "parallel.offload_optimizer")
    take_offload(keys, out, at + "offload_param.device", "parallel.offload_params")
    for old, target in (("cpu_offload", "parallel.offload_optimizer"), ("cpu_offload_params", "parallel.offload_params")):
        value = keys.boolean(at + old)
        if value is not None:
            out.set(target, value, f"{keys.label(at + old)} = {str(value).lower()}")
    size = keys.values.get(at + "zero_hpz_partition_size")
    if isinstance(size, int) and size > 1 and out.settings.get("parallel.strategy", Setting("", "")).value == "zero3":
        keys.take(at + "zero_hpz_partition_size")
        out.set("parallel.shard_group", "node", f"{keys.label(at + 'zero_hpz_partition_size')} = {size}")
    for name, value in (("contiguous_gradients", True), ("reduce_scatter", True), ("overlap_comm", True),
                        ("stage3_gather_16bit_weights_on_model_save", True), ("zero_hpz_partition_size", 1),
                        ("zero_quantized_weights", False), ("zero_quantized_gradients", False),
                        ("zero_quantized_nontrainable_weights", False), ("offload_optimizer.pin_memory", True),
                        ("offload_param.pin_memory", True), ("offload_optimizer.ratio", 1)):
        take_same(keys, out, at + name, value)


def take_stage(keys, out, name):
    stage = keys.integer(name, "parallel.strategy")
    if stage is None:
        return
    if stage >= len(STRATEGIES):
        raise keys.bad(name, stage, "0, 1, 2 or 3")
    out.set("parallel.strategy", STRATEGIES[stage], f"{keys.label(name)} = {stage}")


def take_offload(keys, out, name, target):
    device = keys.text(name, target)
    if device is None:
        return
    if device not in ("none", "cpu", "nvme"):
        raise keys.bad(name, device, "none, cpu or nvme")
    if device == "nvme":
        keys.values[name] = device
    else:
        out.set(target, device == "cpu", f"{keys.label(name)} = {device}")


def take_number(keys, out, name, target, positive=False):
    number = keys.number(name, target, positive)
    if number is not None:
        out.set(target, number, f"{keys.label(name)} = {number!r}")


def take_same(keys, out, name, value):
    """A key that can be set there and not here: without counterpart unless it says what holds here."""
    found = keys.values.get(name)
    if found is None or isinstance(found, str) and found.lower() == "auto":
        return
    if str(found).lower() == str(value).lower() or not isinstance(found, (bool, str)) and found == value:
        del keys.values[name]
        out.same.append(f"{keys.label(name)} = {shown(found)}")


def count_of_ranks(n):
    return f"{n} rank{'' if n == 1 else 's'}"


def settle_batch(out):
    """global_batch_size where the file has it, since it holds on any number of ranks; else gradient_accumulation_steps."""
    train, micro, accumulation = (out.batch.get(what, (None, "")) for what in ("train", "micro", "accumulation"))
    if micro[0]:
        out.set("train.micro_batch_size", micro[0], micro[1])
    if not train[0]:
        if accumulation[0]:
            out.set("train.gradient_accumulation_steps", accumulation[0], accumulation[1])
        return
    out.set("train.global_batch_size", train[0], train[1])
    factors = [(n, source) for n, source in (micro, accumulation) if n]
    if out.ranks:
        factors.append((out.ranks, count_of_ranks(out.ranks)))
    product = 1
    for n, _ in factors:
        product *= n
    if len(factors) == 3 and product != train[0] or train[0] % product:
        no_divisor = "" if len(factors) == 3 else ", no divisor of it"
        out.contradictions.append(f"{train[1]}, but {' x '.join(source for _, source in factors)} is {product}{no_divisor}: "
                                  "global_batch_size is taken from the former")
    elif accumulation[0]:
        out.same.append(f"{accumulation[1]}, as it follows from global_batch_size"
                        + (f" on {count_of_ranks(train[0] // micro[0] // accumulation[0])}" if micro[0] else ""))
