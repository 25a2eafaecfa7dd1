"""Which key was meant: near misses, keys in the wrong section, and other tools' names for ours."""

import difflib
import re
from dataclasses import dataclass

from sftray.train_fn.config_words import leaf_fields, section_keys

_SHARE = "it is a share of all steps here, so that it holds for any number of them"
_BATCH = "a batch has two sizes here: micro_batch_size, per worker and forward, and global_batch_size, per step"
_EVERY = "it is in steps, and 0 turns it off"


@dataclass(frozen=True)
class Meant:
    """The key that was meant, what differs from the name that was used, and a value in place of an illegal one.

    With `converts`, the number given counts something else, and cannot be taken over.
    """

    key: str
    value: object = None
    note: str | None = None
    converts: bool = False


# Names as `_plain` makes them: lower case, parts joined by one underscore.
FOREIGN: dict[str, Meant] = {
    name: meant
    for meant, names in (
        (Meant("name"), "run_name experiment experiment_name run"),
        (Meant("model.name"), "model_name_or_path base_model model_id model_name model_path pretrained checkpoint"),
        (Meant("model.tokenizer"), "tokenizer_name tokenizer_path tokenizer_name_or_path"),
        (Meant("model.chat_template"), "template chat_template_path"),
        (Meant("model.attn_implementation", "flash_attention_2"), "flash_attention use_flash_attention flash_attn"),
        (Meant("model.attn_implementation"), "attention attn attention_implementation"),
        (Meant("model.compile"), "torch_compile"),
        (Meant("model.gradient_checkpointing"), "activation_checkpointing grad_checkpointing"),
        (Meant("model.aux_loss_coef"), "router_aux_loss_coef aux_loss_alpha"),
        (
            Meant("data.train"),
            "dataset datasets dataset_name dataset_path data_path train_file train_data train_path",
        ),
        (Meant("data.validation"), "eval_dataset validation_file val_file val_data val_set_size test_size valid"),
        (
            Meant("data.max_seq_len"),
            "max_length max_len max_seq_length seq_len seq_length sequence_len cutoff_len block_size",
        ),
        (Meant("data.train_on", "all"), "train_on_inputs completion_only_loss assistant_only_loss"),
        (Meant("optim.learning_rate"), "lr max_lr peak_lr"),
        (Meant("optim.schedule"), "scheduler lr_scheduler lr_scheduler_type lr_schedule"),
        (Meant("optim.warmup_ratio", None, _SHARE, True), "warmup warmup_steps warmup_iters num_warmup_steps"),
        (Meant("optim.min_lr_ratio", None, "it is a share of learning_rate here", True), "min_lr eta_min end_lr"),
        (Meant("optim.weight_decay"), "wd decay"),
        (Meant("optim.betas", None, "betas holds both: [beta1, beta2]"), "adam_beta1 adam_beta2 beta1 beta2"),
        (Meant("optim.max_grad_norm"), "grad_clip clip_grad clip_grad_norm gradient_clip_val gradient_clipping"),
        (Meant("train.epochs"), "num_train_epochs num_epochs n_epochs max_epochs epoch"),
        (Meant("train.max_steps"), "num_steps total_steps max_iters num_train_steps"),
        (
            Meant("train.micro_batch_size", None, _BATCH),
            "batch_size per_device_train_batch_size per_gpu_train_batch_size train_batch_size device_batch_size",
        ),
        (
            Meant("train.gradient_accumulation_steps"),
            "accumulation_steps accumulate_grad_batches grad_accum grad_accum_steps gradient_accumulation accum",
        ),
        (Meant("train.packing"), "pack sample_packing packed group_by_length"),
        (Meant("train.precision", "bf16"), "bf16 bfloat16 mixed_precision amp"),
        (Meant("train.precision", "fp16"), "fp16 half"),
        (Meant("train.precision", "fp32"), "fp32"),
        (Meant("train.precision"), "dtype torch_dtype"),
        (Meant("train.seed"), "random_seed data_seed manual_seed"),
        (Meant("train.log_every", None, _EVERY), "logging_steps log_interval log_steps log_every_n_steps"),
        (Meant("train.eval_every", None, _EVERY), "eval_steps eval_interval evaluation_strategy eval_strategy"),
        (Meant("train.save_every", None, _EVERY), "save_steps save_interval checkpoint_every save_strategy"),
        (Meant("scaling.num_workers"), "workers world_size num_gpus gpus n_gpus nproc_per_node num_processes"),
        (Meant("scaling.use_gpu"), "gpu cuda device use_cuda"),
        (Meant("scaling.max_failures"), "retries max_retries max_restarts"),
        (Meant("store.path"), "output_dir out_dir save_dir storage_path log_dir logdir output checkpoint_dir"),
        (Meant("store.keep_checkpoints"), "save_total_limit num_to_keep keep_last max_checkpoints"),
        (Meant("limits.max_minutes", None, "it is in minutes", True), "time_limit max_time max_hours timeout"),
        (Meant("tracking.wandb", "online"), "report_to use_wandb wandb_mode"),
        (Meant("tracking.project"), "wandb_project project_name"),
        (Meant("tracking.entity"), "wandb_entity"),
        (Meant("tracking.tags"), "wandb_tags"),
    )
    for name in names.split()
}


def meant_key(section: str, key: str) -> Meant | None:
    """What `key`, which `section` ('' for the config itself) does not know, was probably meant to be."""
    inside = {_plain(name): f"{section}.{name}".lstrip(".") for name in section_keys().get(section, ())}
    leaves = {_plain(name.rpartition(".")[2]): name for name in reversed(leaf_fields())}
    word = _plain(key.rpartition(".")[2])
    whole = f"{section}.{key}".lstrip(".")
    if key in leaf_fields():  # optim.learning_rate: 1 as one key
        return Meant(key, note="in a file, the keys of a section stand below it")
    if word in inside:  # another spelling: learning-rate
        return Meant(inside[word])
    if word in FOREIGN:
        return FOREIGN[word]
    if word != section and word in section_keys():
        return Meant(word, note=f"{word} is a section of its own: its key begins in the first column")
    if word in leaves:  # the right key in the wrong section
        return Meant(leaves[word])
    for names, likeness in ((inside, 0.6), (leaves, 0.8), (FOREIGN, 0.85)):
        if near := difflib.get_close_matches(word, names, n=1, cutoff=likeness):
            found = names[near[0]]
            return found if isinstance(found, Meant) else Meant(found)
    near = difflib.get_close_matches(whole, leaf_fields(), n=1, cutoff=0.8)
    return Meant(near[0]) if near else None


def _plain(name: str) -> str:
    """learningRate, Learning-Rate and learning_rate are one name."""
    snake = "".join(f"_{c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    return re.sub(r"[-_\s]+", "_", snake.lower()).strip("_")
