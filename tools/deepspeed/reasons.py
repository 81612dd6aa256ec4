"""Why keys of Accelerate and DeepSpeed have no counterpart in input.toml: the first pattern that fits gives the reason."""
import fnmatch

PLANNED = "what is moved, and when, is planned from the sizes of the layers"
PINNED = "the buffers in host memory are pinned and sized by the program"
LAUNCHER = "mpirun or srun starts the ranks"
RECOMPUTE = "train.recompute chooses what is computed again"
NO_DISK = "nothing is offloaded to disks"
NO_TPU = "there is no backend for TPUs"
COMPRESSED = "what is sent is not compressed; a smaller frozen base is model.quantize"
OWN_LOG = "metrics.jsonl and summary.json of the run directory have the figures"

REASONS = (
    ("zero_optimization.stage3_gather_16bit_weights_on_model_save", "what is saved is always whole"),
    ("zero_optimization.stage3_gather_fp16_weights_on_model_save", "what is saved is always whole"),
    ("zero_optimization.zero_quantized_*", COMPRESSED),
    ("zero_optimization.zero_hpz_partition_size", "the frozen base is sharded within a node with zero3 and shard_group alone"),
    ("zero_optimization.mics_*", "shards within a node are shard_group = \"node\""),
    ("zero_optimization.offload_*.nvme_path", NO_DISK),
    ("zero_optimization.offload_*.device", NO_DISK),
    ("zero_optimization.offload_optimizer.ratio", "all of the optimizer's state is offloaded, or none"),
    ("zero_optimization.offload_*", PINNED),
    ("zero_optimization.cpu_offload_use_pin_memory", PINNED),
    ("zero_optimization.elastic_checkpoint", "a checkpoint is read on any number of ranks"),
    ("zero_optimization.load_from_fp32_weights", "checkpoints hold float32"),
    ("zero_optimization.ignore_unused_parameters", "every trained tensor is used in every pass"),
    ("zero_optimization.legacy_stage1", "an old form of DeepSpeed's own"),
    ("zero_optimization.*", PLANNED),
    ("zero_allow_untested_optimizer", "there is one optimizer, AdamW, and every strategy is tested with it"),
    ("zero_force_ds_cpu_optimizer", "there is one AdamW on the CPU"),
    ("fp16.loss_scale", "the loss scale is dynamic"),
    ("fp16.auto_cast", "data are tokens; there is nothing to cast"),
    ("fp16.*", "dynamic loss scaling starts at 2^16 with window 1000 and hysteresis 2, as DeepSpeed's defaults"),
    ("bf16.*", "gradients of accumulated passes are summed in float32"),
    ("optimizer.*", "the optimizer is torch's AdamW"),
    ("scheduler.params.warmup_type", "the learning rate rises linearly from 0"),
    ("scheduler.params.warmup_min_*", "the learning rate rises from 0"),
    ("scheduler.params.cos_min_ratio", "the learning rate falls to 0"),
    ("scheduler.*", "schedules are linear, cosine and constant, with a linear warm-up"),
    ("activation_checkpointing.partition_activations", "a layer is not split over ranks"),
    ("activation_checkpointing.*", RECOMPUTE),
    ("steps_per_print", OWN_LOG),
    ("tensorboard.*", "files lie in run.dir"),
    ("wall_clock_breakdown", OWN_LOG), ("memory_breakdown", OWN_LOG), ("dump_state", OWN_LOG),
    ("flops_profiler.*", OWN_LOG), ("comms_logger.*", OWN_LOG), ("csv_monitor.*", OWN_LOG),
    ("wandb.*", OWN_LOG), ("comet.*", OWN_LOG), ("monitor_config.*", OWN_LOG),
    ("communication_data_type", "gradients are summed in float32"),
    ("seq_parallel_communication_data_type", "sequences are not split over ranks"),
    ("sequence_parallel*", "sequences are not split over ranks"),
    ("tensor_parallel*", "a layer is not split over ranks"), ("pipeline*", "layers are not spread over ranks as a pipeline"),
    ("prescale_gradients", "the loss is the mean over all targets of the global batch, whatever the ranks"),
    ("gradient_predivide_factor", "the loss is the mean over all targets of the global batch, whatever the ranks"),
    ("sparse_gradients", "gradients are dense"), ("sparse_attention*", "attention is exact"),
    ("amp.*", "the type is model.dtype"), ("torch_autocast*", "the type is model.dtype"),
    ("data_types.*", "gradients of accumulated passes are summed in float32"),
    ("aio.*", NO_DISK), ("nebula.*", "checkpoints are written by the program itself"),
    ("checkpoint.*", "see [checkpoint] of input.toml: each is whole, and read on any number of ranks"),
    ("elasticity.*", "global_batch_size holds on any number of ranks"),
    ("autotuning.*", "utrain --plan --ranks N shows memory and communication of every strategy"),
    ("compression_training.*", "weights are neither pruned nor quantized while training"),
    ("curriculum_learning.*", "rows are permuted by train.seed, or stay in file order"),
    ("data_efficiency.*", "rows are permuted by train.seed, or stay in file order"),
    ("dataloader_drop_last", "no row is dropped: the last step of an epoch is short"),
    ("compile*", "there is nothing to compile"), ("dynamo*", "there is nothing to compile"),
    ("zero3_init_flag", "no rank ever holds the whole model under zero3, while loading neither"),
    ("zero3_save_16bit_model", "what is saved is always whole"),
    ("offload_*_nvme_path", NO_DISK), ("offload_*_device", NO_DISK),
    ("deepspeed_moe_layer_cls_names", "there are no mixtures of experts"),
    ("deepspeed_*", LAUNCHER), ("compute_environment", LAUNCHER), ("num_machines", LAUNCHER), ("machine_rank", LAUNCHER),
    ("main_process_*", LAUNCHER), ("main_training_function", LAUNCHER), ("rdzv_*", LAUNCHER), ("same_network", LAUNCHER),
    ("mpirun_config.*", LAUNCHER), ("num_cpu_threads_per_process", "OMP_NUM_THREADS sets the threads of a rank"),
    ("gpu_ids", "CUDA_VISIBLE_DEVICES says which GPUs are used"), ("enable_cpu_affinity", "mpirun --bind-to or srun binds ranks"),
    ("debug", "there is no such mode"), ("tpu*", NO_TPU), ("downcast_bf16", NO_TPU),
    ("command_file", LAUNCHER), ("commands", LAUNCHER),
    ("mixed_precision", "model.dtype is bfloat16, float16 or float32; left out it is auto"),
    ("fp8_config.*", "nothing is computed in 8 bits"),
    ("fsdp_config.*", "only DeepSpeed is translated: FULL_SHARD is strategy = \"zero3\", SHARD_GRAD_OP \"zero2\", NO_SHARD \"ddp\""),
    ("megatron_lm_config.*", "only DeepSpeed is translated"), ("parallelism_config.*", "only DeepSpeed is translated"),
    ("distributed_type", "only DeepSpeed, MULTI_GPU, MULTI_CPU and NO are translated"),
)


# Off there is as here; other keys may be off there and always on here.
OFF_HERE = ("debug", "downcast_bf16", "tpu*", "enable_cpu_affinity", "use_cpu", "dynamo*", "wall_clock_breakdown", "memory_breakdown",
            "dump_state", "*.enabled", "prescale_gradients", "sparse_gradients", "zero_allow_untested_optimizer")


def reason_for(name):
    name = name.removeprefix("deepspeed_config.")
    return next((reason for pattern, reason in REASONS if fnmatch.fnmatchcase(name, pattern)), "not a key that is known here")


def is_off_here(name, value):
    off = value is False or value == [] or isinstance(value, str) and value.lower() in ("no", "none", "false")
    return off and any(fnmatch.fnmatchcase(name, pattern) for pattern in OFF_HERE)
