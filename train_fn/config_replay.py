"""What MiniMind's loop, which `train.replay_seed` goes through, does in one way alone."""

from typing import Any


def find_unlike_seed(config: Any) -> dict[str, object]:
    """The settings of a RunConfig that its loop has otherwise: dotted key -> what they must be."""
    train, optim = config.train, config.optim
    micro, batch = train.micro_batch_size, config.global_batch_size
    needs: dict[str, tuple[bool, object]] = {
        "data.overlong": (config.data.overlong == "truncate", "truncate"),
        "data.train_on": (config.data.train_on == "all", "all"),
        "optim.schedule": (optim.schedule == "minimind", "minimind"),
        "optim.weight_decay": (optim.weight_decay == 0.01, 0.01),  # this and the betas are torch's defaults
        "optim.betas": (optim.betas == (0.9, 0.999), [0.9, 0.999]),
        "train.max_steps": (train.max_steps is None, None),
        "train.max_examples": (train.max_examples is None, None),
        "train.global_batch_size": (batch % micro == 0, batch // micro * micro or micro),
        "train.packing": (not train.packing, False),
        "train.precision": (train.precision != "bf16", "fp32"),  # what it calls bf16 runs as fp16, on a GPU
        "scaling.num_workers": (config.scaling.num_workers == 1, 1),
    }
    return {key: right for key, (is_met, right) in needs.items() if not is_met}
